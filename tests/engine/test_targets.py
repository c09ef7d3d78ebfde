# SPDX-License-Identifier: Apache-2.0
"""From a target's checkpoint to a served head, for target architectures other than the demo's.

The targets are random, but their lm_head is their embedding table with the rows permuted, as in conftest.py: each token
has a likely successor, which a head learns in seconds. The heads have Qwen3's attention, one gated and one plain:
their parity with the trainer is held here, that of heads with Llama's attention in test_draft.py.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from aerie.draft_models.checkpoint import PROVENANCE, read_draft, verify_draft
from aerie.draft_models.contract import GateKind
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.recipe import DraftRecipe
from aerie.trainer.draft.run import run_recipe

if TYPE_CHECKING:
    from vllm import LLM

pytestmark = pytest.mark.engine

VOCAB, HIDDEN, CONTEXT = 260, 64, 512
SHARPNESS = 5.0
DRAFT_TOKENS, NEW_TOKENS = 3, 32
LOGIT_TOLERANCE = 2e-4
"""Float32 on both sides; sums are taken in another order."""
LENGTH_TOLERANCE = 0.1
"""The engine counts drafts past an answer's end, and the simulation knows no end of the answer's length limit."""
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # the least that vLLM attends with on CPUs
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.08,  # layers that surprise a head now and then
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": 257,
    "tie_word_embeddings": False,
}


class Case(NamedTuple):
    gate: GateKind
    make: Callable[[], PreTrainedModel]
    served_class: str


def mixture_of_experts() -> PreTrainedModel:
    sparse: dict[str, Any] = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 1,
    }
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **sparse, norm_topk_prob=True))


def llama_with_scaled_rope() -> PreTrainedModel:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope))


CASES = {
    "qwen3-moe": Case("elementwise", mixture_of_experts, "aerie.draft_models.vllm_model.Eagle3GatedQwen3ForCausalLM"),
    # Unmodified vLLM serves a plain head.
    "llama": Case("none", llama_with_scaled_rope, "vllm.model_executor.models.qwen3_eagle3.Eagle3Qwen3ForCausalLM"),
}


def write_target(folder: Path, make: Callable[[], PreTrainedModel], tokenizer: Path) -> None:
    torch.manual_seed(0)
    model = make().float()
    embeddings = torch.randn(VOCAB, HIDDEN)
    directions = embeddings / embeddings.norm(dim=1, keepdim=True) * (SHARPNESS / HIDDEN**0.5)
    model.get_input_embeddings().weight.data.copy_(embeddings)
    model.get_output_embeddings().weight.data.copy_(directions[torch.randperm(VOCAB)])
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def write_chats(path: Path, count: int, seed: int) -> None:
    rng = random.Random(seed)
    texts = ["".join(rng.choices("abcdefghij ", k=rng.randint(4, 30))) for _ in range(count)]
    path.write_text("".join(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in texts))


def train(target: Path, gate: GateKind) -> Path:
    root = target.parent
    write_chats(root / "train.jsonl", 24, seed=1)
    write_chats(root / "validation.jsonl", 8, seed=2)
    recipe = {
        "target": target,
        "output": root / "draft",
        "work": root / "work",
        "weights": "float32",
        "prompts": {"source": "jsonl", "path": root / "train.jsonl"},
        "validation": {"source": "jsonl", "path": root / "validation.jsonl"},
        "answers": {"engine": "transformers", "max_tokens": NEW_TOKENS},
        "head": {"gate": gate, "attention": "qwen3", "draft_vocab_size": 200},
        "training": {"epochs": 2, "batch_rows": 96, "steps": DRAFT_TOKENS, "keep": "last"},
    }
    return run_recipe(DraftRecipe.model_validate(recipe))


def prompts_of(target: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(target)
    chats = [json.loads(line)["messages"] for line in (target.parent / "validation.jsonl").read_text().splitlines()]
    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def generate(llm: "LLM", prompts: list[list[int]]) -> list[list[int]]:
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, detokenize=False)
    inputs: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [list(request.outputs[0].token_ids) for request in llm.generate(inputs, greedy, use_tqdm=False)]


def without_draft(target: Path, open_engine: Callable[..., AbstractContextManager["LLM"]]) -> list[list[int]]:
    # A function of its own: an engine that a frame still holds ends, and takes the next one's process groups along.
    with open_engine(target) as llm:
        return generate(llm, prompts_of(target))


def counter(llm: "LLM", name: str) -> int:
    return sum(getattr(metric, "value", 0) for metric in llm.get_metrics() if metric.name == name)


class Served(NamedTuple):
    case: Case
    target: Path
    draft: Path
    llm: "LLM"
    undrafted: list[list[int]]


@pytest.fixture(scope="module", params=CASES)
def served(
    request: pytest.FixtureRequest,
    tiny_target: Path,
    tmp_path_factory: pytest.TempPathFactory,
    open_engine: Callable[..., AbstractContextManager["LLM"]],
) -> Iterator[Served]:
    case = CASES[request.param]
    target = tmp_path_factory.mktemp(request.param) / "target"
    write_target(target, case.make, tokenizer=tiny_target)
    draft = train(target, case.gate)
    undrafted = without_draft(target, open_engine)
    with open_engine(target, draft, DRAFT_TOKENS) as llm:
        yield Served(case, target, draft, llm, undrafted)


def test_answers_are_those_without_the_draft_and_as_many_drafts_are_accepted_as_training_foresaw(
    served: Served,
) -> None:
    assert verify_draft(served.draft, served.target) == ()
    assert generate(served.llm, prompts_of(served.target)) == served.undrafted
    steps = counter(served.llm, "vllm:spec_decode_num_drafts")
    length = 1 + counter(served.llm, "vllm:spec_decode_num_accepted_tokens") / steps
    curve = json.loads((served.draft / PROVENANCE).read_text())["curve"]
    foreseen = curve[-1]["length_K"][DRAFT_TOKENS - 1]
    # Trained for so short a time, the head is often wrong: drafts were accepted, and rejected.
    assert 1.2 < length < DRAFT_TOKENS + 0.9
    assert length == pytest.approx(foreseen, abs=LENGTH_TOLERANCE)


def test_the_engine_took_the_class_that_the_architecture_names(served: Served) -> None:
    (kind,) = served.llm.collective_rpc(lambda worker: type(worker.model_runner.drafter.model))
    assert f"{kind.__module__}.{kind.__qualname__}" == served.case.served_class


class Recorder:
    """Watches the drafter: of every proposal, where its recurrence began and its logits over the draft vocabulary."""

    def __init__(self) -> None:
        self.positions: list[list[int]] = []
        self.logits: list[list[torch.Tensor]] = []

    def attach(self, worker: Any) -> list[Any]:  # noqa: ANN401 -- vLLM's worker
        model = worker.model_runner.drafter.model
        return [
            model.model.fc.register_forward_hook(self._on_proposal),
            model.register_forward_pre_hook(self._on_step, with_kwargs=True),
            model.logits_processor.register_forward_hook(self._on_logits),
        ]

    def _on_proposal(self, *_: object) -> None:
        self.positions.append([])
        self.logits.append([])

    def _on_step(self, module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        self.positions[-1].append(int(kwargs["positions"][0]))

    def _on_logits(self, module: object, args: object, logits_1V: torch.Tensor) -> None:
        self.logits[-1].append(logits_1V.clone())


@torch.no_grad()
def test_served_logits_are_the_trainer_s_with_qwen3_s_attention(served: Served) -> None:
    config, tensors = read_draft(served.draft)
    assert config.qk_norm
    for name in "qk":
        # Norms that training left at one would let an engine pass that ignores their weights.
        assert (tensors[f"midlayer.self_attn.{name}_norm.weight"] - 1).abs().max() > 5e-3
    target = AutoModelForCausalLM.from_pretrained(served.target, dtype=torch.float32).eval()
    head = Eagle3Head(config, target.get_input_embeddings().weight)
    head.load_state_dict(tensors)
    recorder = Recorder()
    (hooks,) = served.llm.collective_rpc(recorder.attach)
    prompt = prompts_of(served.target)[0]
    (output,) = generate(served.llm, [prompt])
    for hook in hooks:
        hook.remove()

    tokens_L = torch.tensor([*prompt, *output])
    states = target(tokens_L[None], output_hidden_states=True).hidden_states
    aux_LA = torch.cat([states[layer][0] for layer in config.aux_hidden_state_layer_ids], dim=-1)
    compared = 0
    for positions, logits in zip(recorder.positions, recorder.logits, strict=True):
        # The first recurrent step stands right behind the tokens whose states are known.
        known = positions[1]
        if known + 1 > len(tokens_L):
            continue
        _, logits_SV = head.chain(tokens_L[1 : known + 1], aux_LA[:known], DRAFT_TOKENS)
        torch.testing.assert_close(torch.cat(logits), logits_SV, rtol=0, atol=LOGIT_TOLERANCE)
        compared += 1
    assert compared > 8
