# SPDX-License-Identifier: Apache-2.0
"""How quantised weights lie on disk, one checkpoint format a file."""
