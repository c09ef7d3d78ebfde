# SPDX-License-Identifier: Apache-2.0
"""How many drafted tokens the main model accepts."""
