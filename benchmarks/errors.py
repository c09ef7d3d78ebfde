# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in a measurement. The commands print these in one line and end with status 1."""


class BenchmarkError(Exception):
    """A measurement that cannot be made, or must not be trusted."""
