# SPDX-License-Identifier: Apache-2.0
"""The draft step's kernels in Triton's interpreter, and what it takes to reach them.

Triton decides when it is imported whether it interprets, for the whole process, and other tests may have imported it:
so a process of its own runs the operators' tests and those below once more. float32 and float16 only, for the
interpreter is silently wrong in bfloat16.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aerie.kernels.attention_gate import api as gate
from aerie.kernels.draft_head import api as head
from aerie.kernels.draft_prologue import api as prologue
from aerie.kernels.route import INTERPRET_VARIABLE, interpreted, route

OPERATORS = ("draft_prologue", "attention_gate", "draft_head")
MODULES = [Path(__file__).with_name(f"test_{name}.py") for name in OPERATORS]
POISON = -12345.0

in_the_interpreter = pytest.mark.skipif(not interpreted(), reason="run in a process of its own, below")


def calls(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Each operator on small tensors."""
    wide, narrow, norm = torch.randn(3, 16).to(dtype), torch.randn(3, 8).to(dtype), torch.randn(8).to(dtype)
    return {
        "draft_prologue": lambda: prologue.draft_prologue(None, narrow, narrow, norm, norm, eps=1e-6),
        "attention_gate": lambda: gate.gate_attention(wide, wide, narrow[:, :3].contiguous()),
        "draft_head": lambda: head.draft_tokens(wide, wide),
    }


@pytest.mark.skipif(interpreted(), reason="this is that process")
def test_the_kernels_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, MODULES), __file__]
    environment = os.environ | {INTERPRET_VARIABLE: "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@in_the_interpreter
@pytest.mark.parametrize("operator", OPERATORS)
def test_bfloat16_is_refused_at_once(operator: str) -> None:
    with pytest.raises(TypeError, match="silently wrong in bfloat16"):
        calls(torch.bfloat16)[operator]()


@in_the_interpreter
@pytest.mark.parametrize("operator", OPERATORS)
def test_without_triton_only_use_fails(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = calls(torch.float32)[operator]
    call()
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match=r"requirements/cuda\.lock"):
        call()


@pytest.mark.skipif(interpreted(), reason="this process asked for Triton")
def test_on_a_cpu_triton_is_not_even_imported() -> None:
    modules = ", ".join(f"aerie.kernels.{operator}.api" for operator in OPERATORS)
    script = (
        f"import sys, torch; before = 'triton' in sys.modules; import {modules}; print(before, 'triton' in sys.modules)"
    )
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_tensors_must_share_a_device() -> None:
    with pytest.raises(ValueError, match="on cpu, meta: they must be on one CPU or one CUDA GPU"):
        route(torch.empty(1), torch.empty(1, device="meta"))


def framed(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory full of poison, and a contiguous tensor amid it that is poisoned too."""
    size = torch.Size(shape).numel()
    memory = torch.full((size + 64,), POISON)
    return memory, memory[32 : 32 + size].view(shape)


def assert_filled(memory: torch.Tensor, inside: torch.Tensor) -> None:
    """Every element of the tensor was written, and nothing around it."""
    assert (inside != POISON).all()
    assert int((memory != POISON).sum()) == inside.numel()


@in_the_interpreter
@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_the_prologue_writes_its_results_and_nothing_else(tokens: int) -> None:
    from aerie.kernels.draft_prologue import kernel

    torch.manual_seed(0)
    ids, table, states = torch.randint(9, (tokens,)), torch.randn(9, 200), torch.randn(tokens, 200)
    (memory, x), (kept, normed) = framed(tokens, 400), framed(tokens, 200)
    kernel.launch(ids, table, states, torch.randn(200), torch.randn(200), x, normed, 1e-6)
    assert_filled(memory, x)
    assert_filled(kept, normed)


@in_the_interpreter
@pytest.mark.parametrize(("gates", "channels"), [(70, 70), (3, 60)])
@pytest.mark.parametrize("tokens", [1, 3, 17, 70])
def test_the_gate_writes_its_result_and_nothing_else(tokens: int, gates: int, channels: int) -> None:
    from aerie.kernels.attention_gate import kernel

    torch.manual_seed(0)
    memory, gated = framed(tokens, channels)
    kernel.launch(torch.randn(tokens, 40), torch.randn(gates, 40), torch.randn(tokens, channels), gated)
    assert_filled(memory, gated)


@in_the_interpreter
@pytest.mark.parametrize("tokens", [1, 3, 17, 70])
def test_the_head_writes_its_results_and_nothing_else(tokens: int) -> None:
    from aerie.kernels.draft_head import kernel

    torch.manual_seed(0)
    (memory, drafts), (beside, following) = ((one.long() for one in framed(tokens)) for _ in range(2))
    drafts, following = memory[32 : 32 + tokens], beside[32 : 32 + tokens]
    kernel.launch(torch.randn(tokens, 40), torch.randn(300, 40), torch.arange(300), drafts, following)
    assert_filled(memory, drafts)
    assert_filled(beside, following)
    assert torch.equal(drafts, following)
