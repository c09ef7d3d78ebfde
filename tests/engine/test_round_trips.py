# SPDX-License-Identifier: Apache-2.0
"""Quantise, have vLLM load it, compare logits: every format, symmetry and group size, dense and of experts.

The reference is the checkpoint brought back to float32 and run by transformers. Both hold the same weights, so what is
left are the kernels' own roundings: activations and results of each linear layer go through bfloat16, 2^-9 relative.
Over the two layers and the INT4 lm_head here that is 0.4 % of the logits' norm. The 16-bit model is 12 % away, and a
scale, zero point or nibble in the wrong place moves the logits by as much as they are.

All engines are of one process, which imports vLLM once, and each runs all prompts through prefill and decoding; there
an engine starts in 1.5 s. None serves a second checkpoint: schemes differ in the shapes of their tensors.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from aerie.quant.dequantise import load_dequantised
from aerie.quant.recipe import QuantRecipe
from aerie.quant.run import quantise

if TYPE_CHECKING:
    from vllm import LLM

pytestmark = [pytest.mark.engine, pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are for CPUs")]
VOCAB, HIDDEN, INNER, EXPERTS = 256, 256, 384, 4
CONTEXT, NEW_TOKENS = 64, 4
PROMPT_LENGTHS = (1, 6, 17, 40)
TOLERANCE = 0.01
"""Of the logits' norm."""
GROUPS = (32, 64, 128, "channel")
SYMMETRIES = {"compressed-tensors": (True, False), "gptq": (True,), "awq": (True, False)}
"""vLLM loads no GPTQ with zero points."""
EXPERTS_PER_CHANNEL = ("gptq",)
"""The formats whose experts vLLM loads with one scale an output."""
Kind = Literal["dense", "moe"]
OpenEngine = Callable[..., AbstractContextManager["LLM"]]
Served = list[tuple[list[int], torch.Tensor]]
"""Tokens of a prompt and its answer, and the logits [L, V] behind each of them but the last."""


def recipe(name: str, group: int | str, symmetric: bool) -> QuantRecipe:
    """Of all linear layers but routers; lm_head too."""
    options = {"format": name, "group_size": group, "symmetric": symmetric, "clip": "absmax"}
    return QuantRecipe.model_validate(options | {"ignore": [r"re:.*mlp\.gate$"]})


CASES = [
    pytest.param(kind, name, group, symmetric, id=f"{kind}-{name}-{group}-{'symmetric' if symmetric else 'zeros'}")
    for kind, (name, symmetries), group in product(("dense", "moe"), SYMMETRIES.items(), GROUPS)
    for symmetric in symmetries
    if kind == "dense" or group != "channel" or name in EXPERTS_PER_CHANNEL
]


def _model(kind: Kind) -> PreTrainedModel:
    """Random weights, large enough that every layer moves the logits."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.06,
    }
    if kind == "dense":
        dense = Qwen3ForCausalLM(Qwen3Config(**settings))
        torch.nn.init.normal_(dense.model.embed_tokens.weight)
        return dense
    sparse: dict[str, Any] = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings, **sparse, norm_topk_prob=True))
    _decide_routes(model)
    return model


@torch.no_grad()
def _decide_routes(model: Qwen3MoeForCausalLM) -> None:
    """Give each token two experts by its embedding: where routes are all but ties, roundings would change them."""
    chosen_VE = torch.rand(VOCAB, EXPERTS).argsort(1) < 2
    embeddings_VH = model.model.embed_tokens.weight.normal_()
    embeddings_VH[:, :EXPERTS] += torch.where(chosen_VE, 8.0, -8.0)
    for layer in model.model.layers:
        gate_EH: Any = layer.mlp.gate.weight
        gate_EH[:, :EXPERTS] += torch.eye(EXPERTS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Kind, Path]:
    """16-bit checkpoints by kind."""
    folder = tmp_path_factory.mktemp("plain")
    kinds: tuple[Kind, ...] = ("dense", "moe")
    for kind in kinds:
        _model(kind).bfloat16().save_pretrained(folder / kind)
    return {kind: folder / kind for kind in kinds}


def served(llm: "LLM", prompts: list[list[int]]) -> Served:
    """Greedy answers."""
    from vllm import SamplingParams, TokensPrompt

    greedy = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False, logprobs=-1, prompt_logprobs=-1
    )
    found: Served = []
    for output in llm.generate([TokensPrompt(prompt_token_ids=one) for one in prompts], greedy, use_tqdm=False):
        answer = output.outputs[0]
        steps: list[Any] = [*(output.prompt_logprobs or ())[1:], *(answer.logprobs or ())]
        logits_LV = torch.tensor([[step[token].logprob for token in range(VOCAB)] for step in steps])
        found.append(([*(output.prompt_token_ids or ()), *answer.token_ids], logits_LV))
    return found


@torch.no_grad()
def distance(model: torch.nn.Module, found: Served) -> float:
    """Norm of what the served logits differ by from a model's, over the norm of those."""
    expected_TV = torch.cat([model(torch.tensor([tokens[:-1]])).logits[0] for tokens, _ in found])
    return float((torch.cat([logits_LV for _, logits_LV in found]) - expected_TV).norm() / expected_TV.norm())


@pytest.mark.parametrize(("kind", "name", "group", "symmetric"), CASES)
def test_served_logits_are_the_dequantised_model_s(
    plain: Mapping[Kind, Path],
    tmp_path: Path,
    open_engine: OpenEngine,
    kind: Kind,
    name: str,
    group: int | str,
    symmetric: bool,
) -> None:
    int4 = tmp_path / "int4"
    quantise(plain[kind], int4, recipe(name, group, symmetric))
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]
    options = {"skip_tokenizer_init": True, "max_model_len": CONTEXT, "kv_cache_memory_bytes": 16 << 20}
    with open_engine(int4, logprobs_mode="raw_logits", max_logprobs=-1, **options) as llm:
        found = served(llm, prompts)
    assert sum(len(logits_LV) for _, logits_LV in found) == sum(PROMPT_LENGTHS) + len(prompts) * (NEW_TOKENS - 1)
    assert distance(load_dequantised(int4), found) < TOLERANCE
    # What is served is neither the 16-bit model nor anything that the tolerance would take for it.
    assert distance(AutoModelForCausalLM.from_pretrained(plain[kind], dtype=torch.float32), found) > 10 * TOLERANCE


def in_a_file_of_its_own(folder: Path, config: dict[str, Any]) -> None:
    scheme = config.pop("quantization_config")
    del scheme["quant_method"]
    (folder / "quantize_config.json").write_text(json.dumps(scheme))


def of_auto_round(folder: Path, config: dict[str, Any]) -> None:
    packing = {"gptq": "auto_round:auto_gptq", "awq": "auto_round:auto_awq"}
    scheme = config["quantization_config"]
    config["quantization_config"] = {
        "quant_method": "auto-round",
        "packing_format": packing[scheme["quant_method"]],
        "bits": 4,
        "group_size": scheme["group_size"],
        "sym": scheme["quant_method"] == "gptq",
        "block_name_to_quantize": "model.layers",
    }


def with_rules(folder: Path, config: dict[str, Any]) -> None:
    """The groups of all layers but lm_head as rules for their names in the checkpoint, against another default."""
    scheme = config["quantization_config"]
    rules = {r"+:.*\.([qkvo]|gate|up|down)_proj": {"group_size": scheme["group_size"]}}
    config["quantization_config"] = {**scheme, "group_size": 128, "dynamic": {**scheme["dynamic"], **rules}}


@pytest.mark.parametrize(
    ("kind", "name", "rewrite", "options"),
    [
        ("dense", "gptq", in_a_file_of_its_own, {"quantization": "gptq"}),
        ("moe", "gptq", of_auto_round, {}),
        ("moe", "awq", of_auto_round, {}),
        ("moe", "gptq", with_rules, {}),
    ],
)
def test_layouts_of_other_quantisers_are_served_alike(
    plain: Mapping[Kind, Path],
    tmp_path: Path,
    open_engine: OpenEngine,
    kind: Kind,
    name: str,
    rewrite: Callable[[Path, dict[str, Any]], None],
    options: dict[str, Any],
) -> None:
    int4 = tmp_path / "int4"
    settings = {"format": name, "group_size": 32, "symmetric": name == "gptq", "clip": "absmax"}
    quantise(plain[kind], int4, QuantRecipe.model_validate(settings))
    expected = load_dequantised(int4)
    config = json.loads((int4 / "config.json").read_text())
    rewrite(int4, config)
    (int4 / "config.json").write_text(json.dumps(config))
    prompts = [list(range(1, 18))]
    limits = {"skip_tokenizer_init": True, "max_model_len": CONTEXT, "kv_cache_memory_bytes": 16 << 20}
    with open_engine(int4, logprobs_mode="raw_logits", max_logprobs=-1, **limits, **options) as llm:
        assert distance(expected, served(llm, prompts)) < TOLERANCE
