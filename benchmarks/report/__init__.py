# SPDX-License-Identifier: Apache-2.0
"""Pictures and merged files made from results."""
