# SPDX-License-Identifier: Apache-2.0
"""Gated attention: the gate's projection, its sigmoid and the product with the attention's output."""
