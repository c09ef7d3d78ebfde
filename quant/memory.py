# SPDX-License-Identifier: Apache-2.0
"""What this process has had in memory, and giving back what it holds for nothing."""

import ctypes
import resource


def peak_bytes() -> int:
    """Most memory this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def give_back() -> None:
    """Return freed memory to the system.

    glibc's aligned allocations, which torch's tensors are, fit no hole of their own size (2.36): of small results kept
    between large temporaries, each would leave a temporary's size behind, which for many experts adds up to layers.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)
