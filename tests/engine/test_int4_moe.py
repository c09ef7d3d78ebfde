# SPDX-License-Identifier: Apache-2.0
"""INT4 mixtures of experts in every format, with an INT4 lm_head and an INT4 draft, against what they stand for.

The target has embeddings and lm_head of conftest.py's, so that its drafts fit, and experts in place of its MLPs.
Tolerance: each linear layer and each expert rounds what it multiplies and what it returns to bfloat16, which over the
eight layers here moves log-probabilities by 0.005 in the mean. Where two experts are all but equally likely it may
choose the other, and then moves one by up to 0.2. Leaving out the experts of one layer moves them by 0.08 in the mean.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from aerie.draft_models.checkpoint import verify_draft
from aerie.draft_models.contract import GateKind
from aerie.quant.recipe import QuantRecipe
from aerie.quant.run import quantise
from aerie.quant.vllm_report import summary

if TYPE_CHECKING:
    from vllm import LLM

pytestmark = [pytest.mark.engine, pytest.mark.skipif(torch.cuda.is_available(), reason="the experts are for CPUs")]
GROUP, DRAFT_TOKENS, NEW_TOKENS = 32, 2, 32
PROMPT_LENGTHS = (1, 3, 7, 16, 40, 150)
MEAN_ERROR, LARGEST_ERROR = 0.01, 0.3
FORMATS = ("compressed-tensors", "awq", "gptq")
OpenEngine = Callable[..., AbstractContextManager["LLM"]]


class Weight(NamedTuple):
    """4-bit integers [N, K], scales and zero points [N, G]."""

    q: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor

    def dequantise(self) -> torch.Tensor:
        groups = self.q.float().view(len(self.q), -1, GROUP)
        return ((groups - self.zero.unsqueeze(-1)) * self.scale.unsqueeze(-1)).flatten(1)


def round_to_nearest(weight: torch.Tensor, with_zeros: bool) -> Weight:
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    if with_zeros:
        scale = ((high - low) / 15).bfloat16().float()
        zero = (-low / scale).round().clamp(0, 15)
    else:
        scale = (groups.abs().amax(-1) / 7.5).bfloat16().float()
        zero = torch.full_like(scale, 8)
    q = (groups / scale.unsqueeze(-1) + zero.unsqueeze(-1)).round().clamp(0, 15)
    return Weight(q.flatten(1).to(torch.uint8), scale, zero)


def pack(q_RC: torch.Tensor) -> torch.Tensor:
    """Unsigned 4-bit integers as int32 words of eight, the first in the lowest bits."""
    eights = q_RC.to(torch.int32).view(len(q_RC), -1, 8) << torch.arange(0, 32, 4, dtype=torch.int32)
    return eights.sum(-1, dtype=torch.int32)


def pack_awq(q_KN: torch.Tensor) -> torch.Tensor:
    return pack(q_KN.unflatten(1, (-1, 8))[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1))


def stored(form: str, weight: Weight) -> dict[str, torch.Tensor]:
    """The tensors that take a weight's place in a checkpoint."""
    q, scale, zero = weight
    if form == "compressed-tensors":
        shape = torch.tensor(q.shape)
        return {"weight_packed": pack(q), "weight_scale": scale.bfloat16(), "weight_shape": shape}
    if form == "awq":
        return {"qweight": pack_awq(q.T), "scales": scale.T.half(), "qzeros": pack_awq(zero.T)}
    less_one = (zero.int() - 1) & 0xF
    order = torch.arange(q.shape[1], dtype=torch.int32) // GROUP
    return {"qweight": pack(q).T, "scales": scale.T.half(), "qzeros": pack(less_one.T), "g_idx": order}


def quantization_config(form: str) -> dict[str, Any]:
    if form == "compressed-tensors":
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
        # "Linear" does not name the class of vLLM's lm_head.
        groups = {"group_0": {"targets": ["Linear", "lm_head"], "weights": weights, "input_activations": None}}
        ignored = [r"re:.*mlp\.gate$"]
        return {
            "quant_method": form,
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": ignored,
        }
    if form == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}


def write_int4(source: Path, out: Path, plain: Path, form: str) -> None:
    """A checkpoint's INT4 twin, and the plain float32 one that it stands for."""
    tensors: dict[str, torch.Tensor] = {}
    dense: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        quantised = layer.endswith("_proj") or (form == "compressed-tensors" and layer == "lm_head")
        if not quantised:
            tensors[name] = dense[name] = tensor
            continue
        weight = round_to_nearest(tensor, with_zeros=form != "compressed-tensors")
        dense[name] = weight.dequantise()
        tensors |= {f"{layer}.{kind}": part.contiguous() for kind, part in stored(form, weight).items()}
    config = json.loads((source / "config.json").read_text())
    for folder, weights, more in (
        (out, tensors, {"quantization_config": quantization_config(form)}),
        (plain, dense, {}),
    ):
        folder.mkdir()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config | more))


def write_target(folder: Path, tiny_target: Path) -> None:
    torch.manual_seed(0)
    like = Qwen3ForCausalLM.from_pretrained(tiny_target)
    shared = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config: dict[str, Any] = {name: getattr(like.config, name) for name in shared}
    sparse: dict[str, Any] = {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "decoder_sparse_step": 1,
        "head_dim": 32,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
        "max_position_embeddings": 512,
        "initializer_range": 0.08,
        "bos_token_id": None,
        "eos_token_id": 257,
        "pad_token_id": None,
    }
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**config, **sparse)).float()
    model.model.embed_tokens.load_state_dict(like.model.embed_tokens.state_dict())
    model.lm_head.load_state_dict(like.lm_head.state_dict())
    model.save_pretrained(folder)


class Answer(NamedTuple):
    tokens: list[int]
    logprobs: list[dict[int, float]]


def answers(llm: "LLM", prompts: list[list[int]]) -> list[Answer]:
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False, logprobs=3)
    inputs: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = [request.outputs[0] for request in llm.generate(inputs, greedy, use_tqdm=False)]
    return [
        Answer(
            list(output.token_ids),
            [{token: entry.logprob for token, entry in step.items()} for step in output.logprobs or ()],
        )
        for output in outputs
    ]


class Served(NamedTuple):
    form: str
    model: Path
    plain: Path
    prompts: list[list[int]]
    answers: list[Answer]
    kernels: str


@pytest.fixture(scope="module")
def target(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moe") / "main"
    write_target(folder, tiny_target)
    return folder


@pytest.fixture(scope="module", params=FORMATS)
def served(request: pytest.FixtureRequest, target: Path, tiny_target: Path, open_engine: OpenEngine) -> Served:
    form: str = request.param
    model, plain = target.with_name(form), target.with_name(f"{form}-plain")
    write_int4(target, model, plain, form)
    for file in tiny_target.glob("*token*"):
        (model / file.name).write_bytes(file.read_bytes())
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(256, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]
    with open_engine(model) as llm:
        (lines,) = llm.apply_model(summary)
        return Served(form, model, plain, prompts, answers(llm, prompts), "\n".join(lines))


@torch.no_grad()
def expected(model: Qwen3MoeForCausalLM, prompt: list[int], answer: Answer) -> torch.Tensor:
    """The reference's log-probabilities [steps, vocabulary], teacher-forced."""
    logits: torch.Tensor = model(torch.tensor([[*prompt, *answer.tokens]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)


def test_answers_are_the_dequantised_model_s(served: Served) -> None:
    reference = Qwen3MoeForCausalLM.from_pretrained(served.plain, dtype=torch.float32)
    lacking = Qwen3MoeForCausalLM.from_pretrained(served.plain, dtype=torch.float32)
    torch.nn.init.zeros_(lacking.model.layers[0].mlp.experts.down_proj)
    errors: list[float] = []
    moved: list[float] = []
    for prompt, answer in zip(served.prompts, served.answers, strict=True):
        logprobs, without = expected(reference, prompt, answer), expected(lacking, prompt, answer)
        for step, (token, found) in enumerate(zip(answer.tokens, answer.logprobs, strict=True)):
            # The best token, or one that is as good within the tolerance.
            assert logprobs[step, token] > logprobs[step].max() - 2 * LARGEST_ERROR
            errors += [abs(logprob - float(logprobs[step, candidate])) for candidate, logprob in found.items()]
            moved += [abs(float(without[step, candidate] - logprobs[step, candidate])) for candidate in found]
    assert max(errors) < LARGEST_ERROR
    assert mean(errors) < MEAN_ERROR < mean(moved) / 5


def test_the_log_tells_what_serves_what(served: Served) -> None:
    attention = "serves 16 layers: model.layers.*.self_attn.qkv_proj (8), model.layers.*.self_attn.o_proj (8)"
    if served.form == "compressed-tensors":
        attention = attention.replace("16", "17") + ", lm_head"
    by_kernel = dict(line.split(" ", 1) for line in served.kernels.splitlines())
    assert by_kernel["AerieW4A16LinearKernel"].endswith(attention)
    assert by_kernel["AerieInt4Experts"].endswith("serves 8 layers: model.layers.*.mlp.experts.routed_experts (8)")
    assert "model.layers.*.mlp.gate (8)" in by_kernel["UnquantizedLinearMethod"]


@pytest.fixture(scope="module")
def drafted(
    served: Served, tiny_drafts: Mapping[GateKind, Path], open_engine: OpenEngine
) -> Iterator[tuple[Served, "LLM"]]:
    draft = served.model.with_name("draft")
    quantise(tiny_drafts["elementwise"], draft, QuantRecipe(group_size=GROUP, ignore=()))
    verify_draft(draft, served.model)
    with open_engine(served.model, draft, DRAFT_TOKENS) as llm:
        yield served, llm


def counter(llm: "LLM", name: str) -> int:
    return sum(getattr(metric, "value", 0) for metric in llm.get_metrics() if metric.name == name)


# The draft does not see its target's format: one is enough.
@pytest.mark.parametrize("served", ["compressed-tensors"], indirect=True)
def test_an_int4_draft_drafts_and_changes_no_answer(drafted: tuple[Served, "LLM"]) -> None:
    served, llm = drafted
    assert [answer.tokens for answer in answers(llm, served.prompts)] == [answer.tokens for answer in served.answers]
    proposed = counter(llm, "vllm:spec_decode_num_draft_tokens")
    assert 0.1 < counter(llm, "vllm:spec_decode_num_accepted_tokens") / proposed < 0.9
    (lines,) = llm.collective_rpc(lambda worker: summary(worker.model_runner.drafter.model))
    (int4,) = (line for line in lines if line.startswith("AerieW4A16LinearKernel"))
    for name in ("self_attn.qkv_proj", "self_attn.g_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
        assert f"layers.0.{name}" in int4 or f"layers.*.{name}" in int4
    assert "model.fc" in int4
    assert "lm_head" in int4
