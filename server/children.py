# SPDX-License-Identifier: Apache-2.0
"""Processes below this one: the engine core, its workers, and whatever they started."""

import contextlib
import ctypes
import os
import signal
import sys

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that a killed engine core leaves no worker behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies, however it dies; at once where it is dead already.

    The kernel watches the thread that started this process: it must live as long as its process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def children() -> list[psutil.Process]:
    """Every living descendant, without the resource tracker of `multiprocessing`, which ends by itself after us."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(process.cmdline()):
                found.append(process)
    return found


def end_children(seconds: float = 2.0) -> None:
    """Terminate what is left, and kill what does not go within `seconds`."""
    left = children()
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(left, timeout=seconds)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=seconds)
