# SPDX-License-Identifier: Apache-2.0
"""The draft's greedy choice: lm_head, the largest logit, and the target's id of it, without logits in memory."""
