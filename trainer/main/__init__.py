# SPDX-License-Identifier: Apache-2.0
"""Supervised training of a main model from nothing."""
