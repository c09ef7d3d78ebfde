# SPDX-License-Identifier: Apache-2.0
"""The closed world that stands in for data."""
