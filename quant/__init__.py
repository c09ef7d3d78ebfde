# SPDX-License-Identifier: Apache-2.0
"""INT4 weights: choose them, write them, read them back, serve them through vLLM."""
