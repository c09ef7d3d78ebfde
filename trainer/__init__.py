# SPDX-License-Identifier: Apache-2.0
"""Training: the clinic, main models, drafts."""
