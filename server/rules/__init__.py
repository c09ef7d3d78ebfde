# SPDX-License-Identifier: Apache-2.0
"""What a request may say, beyond being JSON: each file holds the rules for one part of a body."""
