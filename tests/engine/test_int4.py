# SPDX-License-Identifier: Apache-2.0
"""An INT4 checkpoint served by vLLM through our kernel against the model it stands for, dequantised, in float32.

Tolerance: each linear layer rounds its activation and its result to bfloat16 (2^-9 relative each); over the four layers
of the model here that moves a log-probability by less than 0.1. Its two best tokens are always much farther apart, so
that the greedy tokens must be the same.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.decisive import expected_logprobs, make_decisive
from transformers import Qwen3Config, Qwen3ForCausalLM

from aerie.quant.dequantise import load_dequantised
from aerie.quant.recipe import QuantRecipe
from aerie.quant.report import QuantReport
from aerie.quant.run import quantise

pytestmark = [pytest.mark.engine, pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel is for CPUs")]
VOCAB, TOKENS = 512, 24
PROMPT_LENGTHS = (3, 7, 12, 20)
LOGPROB_TOLERANCE = 0.1
SERVED = Path(__file__).with_name("int4_served.py")


@dataclass(frozen=True)
class Case:
    """An INT4 checkpoint, what quantising said of it, and prompts."""

    model: Path
    report: QuantReport
    prompts: list[list[int]]


def _decisive_model() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=VOCAB,
        tie_word_embeddings=False,
        max_position_embeddings=256,
        initializer_range=0.1,
    )
    model = Qwen3ForCausalLM(config)
    make_decisive(model)
    return model


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("int4")
    torch.manual_seed(0)
    _decisive_model().bfloat16().save_pretrained(folder / "main")
    report = quantise(folder / "main", folder / "int4", QuantRecipe(group_size=64))
    prompts = [torch.randint(0, VOCAB, (length,)).tolist() for length in PROMPT_LENGTHS]
    return Case(folder / "int4", report, prompts)


Serve = Callable[..., dict[str, Any]]


@pytest.fixture
def serve(case: Case, tmp_path: Path) -> Serve:
    def run(*options: str, **environment: str) -> dict[str, Any]:
        out = tmp_path / "served.json"
        command = [sys.executable, str(SERVED), str(case.model), str(out), "--tokens", str(TOKENS), *options]
        done = subprocess.run(
            command,
            input=json.dumps(case.prompts),
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        result: dict[str, Any] = json.loads(out.read_text())
        result["log"] = done.stdout + done.stderr
        return result

    return run


def assert_equals_dequantised(case: Case, served: dict[str, Any]) -> None:
    """Served tokens are the reference's greedy ones; log-probabilities are the reference's, teacher-forced."""
    reference = load_dequantised(case.model)
    for prompt, tokens, logprobs in zip(case.prompts, served["tokens"], served["logprobs"], strict=True):
        expected = expected_logprobs(reference, prompt, tokens, apart=2 * LOGPROB_TOLERANCE)
        assert tokens == expected.argmax(-1).tolist()
        for step, found in enumerate(logprobs):
            for token, logprob in found.items():
                assert logprob == pytest.approx(float(expected[step, int(token)]), abs=LOGPROB_TOLERANCE)


def assert_resident_size(case: Case, served: dict[str, Any]) -> None:
    """What the engine holds is what quant_report.json says, and the integers are an eighth of float32."""
    assert sum(served["bytes"].values()) == pytest.approx(case.report.resident_bytes["float32"], rel=0.01)
    integers = sum(size for name, size in served["bytes"].items() if name.endswith("weight_packed"))
    assert integers == case.report.quantised_parameters // 2


def test_float32_engine_on_this_cpu(case: Case, serve: Serve) -> None:
    served = serve()
    assert served["kernels"] == ["AerieW4A16LinearKernel"]
    told = [line for line in served["log"].splitlines() if "AerieW4A16LinearKernel (torch's" in line]
    assert len(told) == 1
    assert "model.layers.*.mlp.gate_up_proj (4)" in told[0]
    assert_equals_dequantised(case, served)
    assert_resident_size(case, served)


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_f", False), reason="this CPU is such a one")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_engine_on_a_cpu_without_avx512(case: Case, serve: Serve, dtype: str) -> None:
    """vLLM's AVX2 extension has no INT4 operator; there ours serves every type. Slow, but it answers."""
    served = serve("--avx2", "--dtype", dtype)
    assert served["isa"] == "AVX2"
    assert not served["stock_operator"]
    assert served["kernels"] == ["AerieW4A16LinearKernel"]
    if dtype == "float32":
        assert_equals_dequantised(case, served)


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_f", False), reason="vLLM's operator needs AVX-512")
def test_float16_is_left_to_vllm_where_it_works(serve: Serve) -> None:
    assert serve("--dtype", "float16")["kernels"] == ["CPUWNA16LinearKernel"]
