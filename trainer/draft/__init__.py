# SPDX-License-Identifier: Apache-2.0
"""The draft head's training: prompts, answers, captured states, training-time test, export."""
