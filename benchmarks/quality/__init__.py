# SPDX-License-Identifier: Apache-2.0
"""Whether the answers are good, not how fast they come."""
