# SPDX-License-Identifier: Apache-2.0
"""What the draft's layer eats: gathered embedding and hidden state, each normed, side by side."""
