# SPDX-License-Identifier: Apache-2.0
"""Speed of real servers under a real load generator."""
