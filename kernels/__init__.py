# SPDX-License-Identifier: Apache-2.0
"""Operators, one a folder: api, reference, pack, tuning, kernel. Knows torch and triton, nothing else of ours."""
