# SPDX-License-Identifier: Apache-2.0
"""Our operators in the draft step of a real engine on a CPU: shapes, types, compiled graphs, the same tokens.

On a CPU the operators are torch's arithmetic behind the same names, and only run when asked for.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import Qwen3ForCausalLM

from aerie.draft_models import vllm_model
from aerie.draft_models.checkpoint import read_draft
from aerie.draft_models.contract import GateKind
from aerie.draft_models.draft_kernels import CHOICE_VARIABLE
from aerie.draft_models.modeling import Eagle3Head
from aerie.draft_models.offline import OfflineEngine
from aerie.draft_models.parity import compare
from aerie.kernels.draft_head.api import draft_tokens

if TYPE_CHECKING:
    from vllm import LLM

pytestmark = [pytest.mark.engine, pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what CPUs do")]

OpenEngine = Callable[..., AbstractContextManager["LLM"]]

DRAFT_TOKENS = 3
NEW_TOKENS = 24
PROMPT_LENGTHS = (1, 2, 7, 40, 90) * 2


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


def generate(llm: "LLM", inputs: list[list[int]], new_tokens: int = NEW_TOKENS) -> list[list[int]]:
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    tokens: Any = [{"prompt_token_ids": prompt} for prompt in inputs]
    return [list(request.outputs[0].token_ids) for request in llm.generate(tokens, greedy, use_tqdm=False)]


def accepted(llm: "LLM") -> int:
    name = "vllm:spec_decode_num_accepted_tokens"
    return sum(getattr(metric, "value", 0) for metric in llm.get_metrics() if metric.name == name)


@pytest.fixture(scope="module")
def stock(
    tiny_target: Path, tiny_drafts: Mapping[GateKind, Path], open_engine: OpenEngine
) -> tuple[list[list[int]], int]:
    """What vLLM's own layers answer, and how many tokens their drafts had accepted."""
    with open_engine(tiny_target, tiny_drafts["elementwise"], DRAFT_TOKENS) as llm:
        model = llm.collective_rpc(lambda worker: worker.model_runner.drafter.model)[0]
        # Nobody asked for ours, and this is a CPU.
        layer = model.model.layers[0]
        assert [model.head_is_ours, layer.prologue_is_ours, layer.self_attn.gate_is_ours] == [False] * 3
        return generate(llm, prompts()), accepted(llm)


def test_compiled_code_calls_our_operators(
    stock: tuple[list[list[int]], int],
    tiny_target: Path,
    tiny_drafts: Mapping[GateKind, Path],
    open_engine: OpenEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dynamo traces the head with the operators' fake implementations; their results are those of vLLM's layers."""
    monkeypatch.setenv(CHOICE_VARIABLE, "aerie")
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")  # traced whole, but not handed to a C++ compiler
    speculative = {
        "method": "eagle3",
        "model": str(tiny_drafts["elementwise"]),
        "num_speculative_tokens": DRAFT_TOKENS,
        "use_local_argmax_reduction": True,
    }
    chosen: list[torch.Tensor] = []

    def watched(*arguments: torch.Tensor) -> torch.Tensor:
        chosen.append(draft_tokens(*arguments))
        return chosen[-1]

    monkeypatch.setattr(vllm_model, "draft_tokens", watched)
    with open_engine(tiny_target, speculative_config=speculative, enforce_eager=False) as llm:
        assert (generate(llm, prompts()), accepted(llm)) == stock
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
            generate(llm, [[1, 2, 3]], new_tokens=2)
    assert {"aerie::draft_prologue", "aerie::attention_gate"} <= {event.key for event in recorded.key_averages()}
    assert all(tokens.dtype == torch.int64 for tokens in chosen)
    assert sum(map(len, chosen)) >= DRAFT_TOKENS * len(PROMPT_LENGTHS)


def test_served_logits_are_the_trainer_s(
    stock: tuple[list[list[int]], int],
    tiny_target: Path,
    tiny_drafts: Mapping[GateKind, Path],
    open_engine: OpenEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other gate, uncompiled, and the logits themselves: `Eagle3Head` computes them again."""
    monkeypatch.setenv(CHOICE_VARIABLE, "aerie")
    draft = tiny_drafts["headwise"]
    config, tensors = read_draft(draft)
    target = Qwen3ForCausalLM.from_pretrained(tiny_target, dtype=torch.float32)
    head = Eagle3Head(config, target.model.embed_tokens.weight)
    head.load_state_dict(tensors)
    with open_engine(tiny_target, draft, DRAFT_TOKENS) as llm:
        assert generate(llm, prompts()) == stock[0]
        parity = compare(OfflineEngine(llm), head, prompts()[4], DRAFT_TOKENS)
        assert parity.holds
        assert parity.same_drafts == parity.drafts > 6
        # Power: a gate that is only a little different is noticed.
        head.midlayer.self_attn.o_proj.weight.data.mul_(1.01)
        assert not compare(OfflineEngine(llm), head, prompts()[4], DRAFT_TOKENS).holds


def test_a_choice_that_means_nothing_is_refused(
    tiny_target: Path, tiny_drafts: Mapping[GateKind, Path], open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    monkeypatch.setenv(CHOICE_VARIABLE, "fast")
    with pytest.raises(ValueError, match="AERIE_DRAFT_KERNELS=fast"), open_engine(tiny_target, tiny_drafts["headwise"]):
        pass
    # An engine that did not start leaves its process groups behind, which the next one would take for its own.
    cleanup_dist_env_and_memory()
