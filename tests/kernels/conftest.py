# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter for one module of tests, in a process where others compile the same kernels; and poison."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

KERNELS = (
    "aerie.kernels.int4_inner",
    "aerie.kernels.int4_gemm.kernel",
    "aerie.kernels.expert_blocks",
    "aerie.kernels.int4_moe.kernel",
)
OF_TRITON = ("sum", "cumsum")
"""Functions of Triton's own that kernels call, and that it compiles as it does ours."""


@pytest.fixture(scope="module")
def interpreter() -> Iterator[None]:
    """Import the kernels anew, to be interpreted: Triton asks its variable when it decorates a function.

    In the end they are what they were before, imported or not. Triton itself is imported to be compiled, as it is where
    other tests came first.
    """
    import triton.language as tl

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in OF_TRITON:
            # As plain Python: interpreted functions that call others leave Triton's core patched behind them.
            patch.setattr(tl, name, getattr(tl, name).fn)
        for name in KERNELS:
            package, _, module = name.rpartition(".")
            patch.setitem(sys.modules, name, ModuleType(name))
            patch.setattr(importlib.import_module(package), module, None, raising=False)
        for name in KERNELS:
            del sys.modules[name]
        for name in KERNELS:
            importlib.import_module(name)
        yield


@pytest.fixture
def poison() -> Iterator[None]:
    """Fresh memory is full of NaN: what is left unwritten shows, and what is read before it is written."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
