# SPDX-License-Identifier: Apache-2.0
"""The gated Eagle-3 head: its contract, its PyTorch module for training, its vLLM module for serving."""
