# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts with 4-bit weights and 16-bit activations for x86 CPUs."""
