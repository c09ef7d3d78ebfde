# SPDX-License-Identifier: Apache-2.0
"""What is said to serve INT4 experts, on CPUs and on GPUs, and why."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from vllm.platforms import current_platform

from aerie.quant import vllm_linear, vllm_moe
from aerie.quant.vllm_moe import Sizes, ours_serves

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="the experts are for CPUs")
QWEN = Sizes(128, 2048, 768, 128, torch.bfloat16)
RESULT = "benchmarks/results/kernels-example.json"


@pytest.mark.parametrize(("amx", "dtype", "serve"), [(True, torch.bfloat16, True), (True, torch.float32, False)])
def test_stock_experts_need_amx_and_bfloat16(
    monkeypatch: pytest.MonkeyPatch, amx: bool, dtype: torch.dtype, serve: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert vllm_linear.stock_experts_serve(dtype) is serve


@pytest.mark.parametrize(
    ("choice", "amx", "dtype", "name"),
    [
        ("auto", False, "bfloat16", "AerieInt4Experts"),
        ("auto", True, "bfloat16", "CPUExpertsInt4"),
        ("auto", True, None, "AerieInt4Experts"),
        ("aerie", True, "bfloat16", "AerieInt4Experts"),
        ("vllm", True, "bfloat16", "CPUExpertsInt4"),
    ],
)
def test_says_what_serves_experts(
    monkeypatch: pytest.MonkeyPatch, choice: str, amx: bool, dtype: vllm_linear.Dtype | None, name: str
) -> None:
    monkeypatch.setenv("AERIE_INT4_KERNEL", choice)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert vllm_linear.serving_experts(dtype)[0] == name


def test_says_when_nothing_can_serve_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AERIE_INT4_KERNEL", "vllm")
    with pytest.raises(ValueError, match="AERIE_INT4_KERNEL=vllm"):
        vllm_linear.serving_experts("float32")


@pytest.mark.usefixtures("gpu_class")
@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        (replace(QWEN, dtype=torch.float32), "it takes torch.bfloat16 and torch.float16, not torch.float32"),
        (replace(QWEN, group_size=32), "hidden size: group size 32 is no multiple of 64"),
        (replace(QWEN, inner=192), "192 inputs of a rank are no multiple of the group size 128"),
        (replace(QWEN, inner=100, group_size=-1), "100 inputs of a rank are no multiple of a word's 8"),
    ],
)
def test_on_a_gpu_sizes_that_ours_does_not_take_have_a_reason(sizes: Sizes, reason: str) -> None:
    assert ours_serves(sizes) == (False, f"int4_moe: {reason}")


@pytest.mark.usefixtures("gpu_class")
def test_on_a_gpu_ours_serves_what_was_measured_ahead_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layer = {"n": 1536, "k": 2048, "group": 128, "experts": 128, "result": RESULT}
    table = {"measured": True, "note": "", "programs": 1, "buckets": {}, "shapes": [], "ahead": [layer]}
    (tmp_path / "gpu-of-experts.json").write_text(json.dumps(table))
    monkeypatch.setattr(vllm_moe, "TABLES", tmp_path)
    monkeypatch.setattr(type(current_platform), "get_device_name", classmethod(lambda *_: "GPU of Experts"))
    monkeypatch.setenv("AERIE_INT4_KERNEL", "auto")
    assert ours_serves(QWEN) == (True, f"{RESULT} shows it ahead on GPU of Experts")
    for other in (replace(QWEN, experts=64), replace(QWEN, inner=1536), replace(QWEN, group_size=64)):
        served, why = ours_serves(other)
        assert not served
        assert "no committed measurement shows it ahead on GPU of Experts" in why
    monkeypatch.setenv("AERIE_INT4_KERNEL", "vllm")
    assert ours_serves(QWEN) == (False, "AERIE_INT4_KERNEL=vllm")


@pytest.mark.usefixtures("gpu_class")
@pytest.mark.parametrize(("choice", "name"), [("aerie", "AerieInt4MoeExperts"), ("auto", "one of vLLM's")])
def test_says_what_serves_experts_on_a_gpu(monkeypatch: pytest.MonkeyPatch, choice: str, name: str) -> None:
    monkeypatch.setenv("AERIE_INT4_KERNEL", choice)
    assert vllm_linear.serving_experts("bfloat16", 128, (128, 1536, 2048))[0].startswith(name)
