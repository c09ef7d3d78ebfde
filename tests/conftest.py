# SPDX-License-Identifier: Apache-2.0
"""What several rooms need: faults, the classes for GPUs, and an end to what vLLM leaves behind."""

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def largest_file() -> Callable[[int], AbstractContextManager[None]]:
    """`with largest_file(size):` no file may be larger, as where a disk has that much left."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def threads() -> Callable[[int], AbstractContextManager[None]]:
    """`with threads(2):` operators of this process run on so many OpenMP threads."""

    @contextmanager
    def running(count: int) -> Iterator[None]:
        before = torch.get_num_threads()
        # Not torch's own name for it, which an engine in this process replaces for good.
        torch._C.set_num_threads(count)
        try:
            yield
        finally:
            torch._C.set_num_threads(before)

    return running


@pytest.fixture
def gpu_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel class for GPUs serves on this CPU, first of all, wherever it can; likewise the experts for GPUs."""
    from vllm.model_executor.kernels.linear import _POSSIBLE_KERNELS
    from vllm.platforms import PlatformEnum

    from aerie.quant import vllm_linear
    from aerie.quant.kernel_choice import CHOICE_VARIABLE
    from aerie.quant.vllm_gemm import AerieInt4GemmLinearKernel

    # First as it is, for vLLM loads plugins once a process, and later tests may want the class for CPUs.
    vllm_linear.register()
    monkeypatch.setattr(AerieInt4GemmLinearKernel, "platforms", (PlatformEnum.CPU,))
    monkeypatch.setitem(_POSSIBLE_KERNELS, PlatformEnum.CPU, list(_POSSIBLE_KERNELS[PlatformEnum.CPU]))
    monkeypatch.setenv(CHOICE_VARIABLE, "aerie")
    vllm_linear.register()


@pytest.fixture(scope="module", autouse=True)
def layers_of_vllm_end_quietly() -> None:
    """Have the destructor of its linear layers on CPUs do nothing while torch pretends to compute (`opcheck`).

    There it fails, and leaves torch unable to pretend or to differentiate in any later test of the process. When it is
    called is the garbage collector's choice, long after the layers' own test.
    """
    ops = sys.modules.get("vllm._custom_ops")
    if ops is None or hasattr(ops.CPUDNNLGEMMHandler, "ends"):
        return
    handler = ops.CPUDNNLGEMMHandler
    handler.ends = handler.__del__

    def end(self: Any) -> None:  # noqa: ANN401 - vLLM's class, which is only imported where it is used
        if not torch._C._len_torch_dispatch_stack():
            self.ends()

    handler.__del__ = end
