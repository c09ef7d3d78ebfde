# SPDX-License-Identifier: Apache-2.0
"""The figures of the pages in `docs/` and of the README, from result files alone."""
