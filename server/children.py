# SPDX-License-Identifier: Apache-2.0
"""Processes below this one: the engine core, its workers, and whatever they started."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SPAWNED = "--multiprocessing-fork"
"""How `multiprocessing` starts a process; actors of Ray, which read the same objects, are not children of ours."""


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


class EndsWithParent:
    """Binds a process of `multiprocessing` to its parent as soon as it reads what it is started with.

    vLLM loads its plugins only once the engine core has met the front end: a core whose front end is killed before
    would wait for it for five minutes. An attribute of any object that is handed to the process will do. What the
    process starts with that object in its turn is bound to it.
    """

    def __reduce__(self) -> "tuple[Callable[[int], EndsWithParent], tuple[int]]":
        return _bound_to, (os.getpid(),)

    def __deepcopy__(self, memo: object) -> "EndsWithParent":
        return self


def _bound_to(parent: int) -> EndsWithParent:
    if SPAWNED in sys.orig_argv:
        die_with_parent(parent)
    return EndsWithParent()


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
