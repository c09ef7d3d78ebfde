# SPDX-License-Identifier: Apache-2.0
"""Studies of the draft: many heads that differ in one thing, trained alike, each measured in the engine."""
