# SPDX-License-Identifier: Apache-2.0
"""Methods that look at text: what they gain over rounding, that AWQ's folding changes nothing, and experts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    Olmo2Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    StableLmConfig,
)

from aerie.quant.convert import HELD_OUT
from aerie.quant.dequantise import load_dequantised
from aerie.quant.errors import QuantError
from aerie.quant.layerwise import CALIBRATION
from aerie.quant.methods.awq import Inputs
from aerie.quant.recipe import QuantRecipe
from aerie.quant.run import quantise
from aerie.quant.skeleton import Skeleton
from aerie.quant.stream import Checkpoint
from aerie.quant.text import Document

SaveModel = Callable[..., Path]
Method = Literal["rtn", "awq", "autoround"]
VOCAB, LENGTH = 96, 24
CPU = torch.device("cpu")


def documents(seed: int, count: int = 12) -> list[Document]:
    """Random tokens of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Document(tuple(torch.randint(0, VOCAB, (LENGTH - index % 5,), generator=generator).tolist()), given=4)
        for index in range(count)
    ]


TEXTS = {CALIBRATION: documents(0), HELD_OUT: documents(1)}


@pytest.fixture
def moe(tmp_path: Path) -> Path:
    """Four experts, two a token, one of which the router never chooses."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"head_dim": 32}
    config = Qwen3MoeConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=VOCAB, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=True,
        tie_word_embeddings=True, **settings,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "moe")
    return tmp_path / "moe"


def logits(model: torch.nn.Module, found: list[Document]) -> torch.Tensor:
    """Of all documents, one after another."""
    with torch.no_grad():
        return torch.cat([model(torch.tensor([one.token_ids])).logits[0] for one in found])


def loud(model: Path) -> Path:
    """Give a few channels of the residual stream far larger activations, as trained models have them."""
    tensors = load_file(model / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[:3] *= 20
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3-moe": (Qwen3MoeConfig, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}),
    "gemma": (GemmaConfig, {"hidden_activation": "gelu_pytorch_tanh"}),
    "granite": (
        GraniteConfig,
        {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0, "attention_multiplier": 0.1},
    ),
    "stablelm": (StableLmConfig, {"use_qkv_bias": True}),
    "stablelm, parallel": (StableLmConfig, {"use_parallel_residual": True}),
    "olmo2": (Olmo2Config, {}),
    "cohere": (CohereConfig, {"logit_scale": 0.25}),
}
FOLDED = ("llama", "qwen2", "qwen3-moe", "gemma", "granite", "stablelm")
"""Families into whose norms AWQ's scales go."""


@pytest.fixture
def family(tmp_path: Path) -> Callable[[str], Path]:
    """Write a small model of a family, whose norms do something."""

    def save(name: str) -> Path:
        torch.manual_seed(0)
        kind, changes = FAMILIES[name]
        sizes: dict[str, Any] = {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        more: dict[str, Any] = {
            "num_key_value_heads": 1,
            "head_dim": 32,
            "vocab_size": VOCAB,
            "pad_token_id": 0,
            "eos_token_id": 1,
        }
        model = AutoModelForCausalLM.from_config(kind(**sizes, **more, **changes))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "norm" in parameter_name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        model.bfloat16().save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


@pytest.mark.parametrize("name", FAMILIES)
def test_a_skeleton_computes_what_transformers_does(family: Callable[[str], Path], name: str) -> None:
    folder = family(name)
    skeleton = Skeleton(Checkpoint.open(folder), CPU)
    ids = torch.tensor([one.token_ids[:20] for one in documents(0)])
    states = skeleton.ends.embed(ids)
    for index in range(len(skeleton)):
        states = skeleton.run(skeleton.layer(index), states)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = skeleton.ends.logits(states.flatten(0, 1), skeleton.ends.head().float().split(40)).view(*ids.shape, -1)
    with torch.no_grad():
        torch.testing.assert_close(found, model(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_awq_s_scales_leave_the_model_as_it_is_or_are_refused(
    family: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    folder = family(name)
    recipe = QuantRecipe(method="awq", group_size=32)
    if name not in FOLDED:
        with pytest.raises(QuantError, match=r"recipe option method: awq .*; set method: autoround or rtn"):
            quantise(folder, tmp_path / "awq", recipe, TEXTS)
        assert not (tmp_path / "awq").exists()
        return
    report = quantise(folder, tmp_path / "awq", recipe, TEXTS)
    plain = quantise(folder, tmp_path / "rtn", QuantRecipe(group_size=32), TEXTS)
    assert report.decoder[-1].output_errors[HELD_OUT] < 1.2 * plain.decoder[-1].output_errors[HELD_OUT]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_quality_is_that_of_the_written_checkpoint(
    save_model: SaveModel, moe: Path, tmp_path: Path, kind: str, symmetric: bool
) -> None:
    """Perplexities of the report, found layer by layer, against whole models read back from disk."""
    folder = loud(moe if kind == "moe" else save_model())
    recipe = QuantRecipe(method="awq", group_size=32, symmetric=symmetric)
    quality = quantise(folder, tmp_path / "int4", recipe, TEXTS).quality
    assert quality is not None
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for model, reported in (
        (plain, quality.perplexity_before),
        (load_dequantised(tmp_path / "int4"), quality.perplexity_after),
    ):
        losses = []
        for one in TEXTS[HELD_OUT]:
            predicted = logits(model, [one])[one.given - 1 : -1].log_softmax(-1)
            losses.append(-predicted.gather(1, torch.tensor(one.token_ids[one.given :])[:, None]))
        assert reported == pytest.approx(float(torch.cat(losses).mean().exp()), rel=1e-4)
    assert quality.tokens == sum(len(one.token_ids) - one.given for one in TEXTS[HELD_OUT])
    assert 0 < quality.top1_agreement < 1
    assert quality.kl > 0


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_each_method_gains_on_the_one_before(save_model: SaveModel, moe: Path, tmp_path: Path, kind: str) -> None:
    folder = loud(moe if kind == "moe" else save_model())
    errors: dict[str, float] = {}
    methods: tuple[Method, ...] = ("rtn", "awq", "autoround")
    for method in methods:
        recipe = QuantRecipe(method=method, group_size=32, iterations=60, batch_documents=6, min_expert_tokens=1)
        report = quantise(folder, tmp_path / method, recipe, TEXTS)
        errors[method] = report.decoder[-1].output_errors[HELD_OUT]
        found, expected = (
            logits(load_dequantised(tmp_path / method), TEXTS[HELD_OUT]),
            logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), TEXTS[HELD_OUT]),
        )
        assert float((found - expected).norm() / expected.norm()) < 0.5
    assert errors["awq"] < 0.95 * errors["rtn"]
    assert errors["autoround"] < 0.95 * errors["rtn"]


def test_experts_without_tokens_fall_back_and_are_named(moe: Path, tmp_path: Path) -> None:
    recipe = QuantRecipe(method="autoround", group_size=32, iterations=2, min_expert_tokens=10**6)
    report = quantise(moe, tmp_path / "int4", recipe, TEXTS)
    tokens = sum(len(one.token_ids) for one in TEXTS[CALIBRATION])
    for index, layer in enumerate(report.decoder):
        assert sum(layer.tokens_by_expert) == 2 * tokens
        experts = [f"model.layers.{index}.mlp.experts.{expert}." for expert in range(4)]
        assert sorted(layer.fallbacks) == sorted(e + p for e in experts for p in ("down_proj", "gate_proj", "up_proj"))
    page = (tmp_path / "int4/quant_report.md").read_text()
    assert "model.layers.0.mlp.experts.3.up_proj" in page
    plain = quantise(moe, tmp_path / "rtn", QuantRecipe(group_size=32), TEXTS)
    rounded, fallen = (load_file(tmp_path / name / "model.safetensors") for name in ("rtn", "int4"))
    name = "model.layers.0.mlp.experts.3.up_proj.weight_packed"
    assert torch.equal(rounded[name], fallen[name])
    assert plain.quality is not None


def test_moments_are_means_over_weighted_tokens() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5000, 8), torch.rand(5000)
    inputs = Inputs(x, weight)
    total = weight.double().sum()
    expected = (x.double().T * weight.double()) @ x.double() / total
    torch.testing.assert_close(inputs.gram().double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inputs.mean_square(), inputs.gram().diagonal(), rtol=1e-4, atol=1e-5)
    magnitude = (x.double().abs() * weight.double()[:, None]).sum(0) / total
    torch.testing.assert_close(inputs.magnitude().double(), magnitude, rtol=1e-4, atol=1e-5)
