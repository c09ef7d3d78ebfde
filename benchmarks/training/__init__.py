# SPDX-License-Identifier: Apache-2.0
"""The draft's trainer: its speed, its memory and its gradients beside those of speculators."""
