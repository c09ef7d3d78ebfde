# SPDX-License-Identifier: Apache-2.0
"""Aerie: an OpenAI-compatible server for INT4 models with gated Eagle-3 drafting, and its trainer."""

__version__ = "0.1.0"
