# SPDX-License-Identifier: Apache-2.0
"""Operators, one a folder: api, pack, reference, tuning. Knows torch and triton, nothing else of ours."""
