# SPDX-License-Identifier: Apache-2.0
"""Which INT4 layers the kernel class for GPUs takes, and what is said of those that it leaves to vLLM."""

import json
from pathlib import Path

import pytest
import torch
from vllm import envs
from vllm.model_executor.kernels.linear import (
    _POSSIBLE_KERNELS,
    CPUWNA16LinearKernel,
    MPLinearLayerConfig,
    choose_mp_linear_kernel,
)
from vllm.platforms import PlatformEnum, current_platform
from vllm.scalar_type import ScalarType, scalar_types

from aerie.kernels.int4_gemm import tuning
from aerie.quant import vllm_gemm, vllm_linear, vllm_report
from aerie.quant.kernel_choice import CHOICE_VARIABLE
from aerie.quant.vllm_gemm import AerieInt4GemmLinearKernel

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="the class is forced where vLLM is for CPUs")
OUTPUTS, INPUTS, GROUP = 256, 512, 128
RESULT = "benchmarks/results/kernels-example.json"
NOT_MEASURED = "no committed measurement shows it ahead on Unknown GPU"


def layer_config(
    act: torch.dtype = torch.bfloat16,
    shape: tuple[int, int] = (INPUTS, OUTPUTS),
    group: int = GROUP,
    weight: ScalarType = scalar_types.uint4b8,
    out: torch.dtype | None = None,
) -> MPLinearLayerConfig:
    zero_points = weight == scalar_types.uint4
    return MPLinearLayerConfig((2 * shape[0], shape[1]), shape, weight, act, group, zero_points, out)


@pytest.fixture
def on_gpu(gpu_class: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The GPU `Example GPU`, on which one layer was measured ahead; others are called as a test likes."""
    layer = {"n": OUTPUTS, "k": INPUTS, "group": GROUP, "result": RESULT}
    table = {"measured": True, "note": "", "programs": 1, "buckets": {}, "shapes": [], "ahead": [layer]}
    (tmp_path / "example-gpu.json").write_text(json.dumps(table))
    monkeypatch.setattr(vllm_gemm, "TABLES", tmp_path)
    called(monkeypatch, "Example GPU")


def called(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(type(current_platform), "get_device_name", classmethod(lambda cls, device_id=0: name))


def test_is_not_for_cpus() -> None:
    assert AerieInt4GemmLinearKernel.can_implement(layer_config()) == (False, "int4_gemm is for CUDA GPUs")
    assert AerieInt4GemmLinearKernel not in _POSSIBLE_KERNELS[PlatformEnum.CPU]


@pytest.mark.usefixtures("gpu_class")
def test_registers_once_and_first() -> None:
    vllm_linear.register()
    kernels = _POSSIBLE_KERNELS[PlatformEnum.CPU]
    assert kernels[0] is AerieInt4GemmLinearKernel
    assert kernels.count(AerieInt4GemmLinearKernel) == 1


@pytest.mark.usefixtures("gpu_class")
@pytest.mark.parametrize(
    "config",
    [
        layer_config(),
        layer_config(torch.float16),
        layer_config(weight=scalar_types.uint4),
        layer_config(group=64),
        layer_config(group=256),
        layer_config(shape=(200, 7), group=-1),
        MPLinearLayerConfig((128, 200), (128, 100), scalar_types.uint4b8, torch.bfloat16, 128, zero_points=False),
        MPLinearLayerConfig((100, 7), (100, 7), scalar_types.uint4, torch.bfloat16, -1, zero_points=True),
    ],
)
def test_takes_what_the_operator_takes(config: MPLinearLayerConfig) -> None:
    assert AerieInt4GemmLinearKernel.can_implement(config) == (True, None)
    assert choose_mp_linear_kernel(config) is AerieInt4GemmLinearKernel


@pytest.mark.usefixtures("gpu_class")
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (layer_config(torch.float32), "it takes torch.bfloat16 and torch.float16, not torch.float32"),
        (layer_config(torch.float8_e4m3fn), "not torch.float8_e4m3fn"),
        (layer_config(weight=scalar_types.uint8b128), "it reads 4-bit weights, not uint8b128"),
        (layer_config(group=32), "group size 32 is no multiple of 64"),
        (layer_config(shape=(192, 64)), "192 inputs of a rank are no multiple of the group size 128"),
        (layer_config(shape=(100, 64), group=-1), "100 inputs of a rank are no multiple of a word's 8"),
        (
            MPLinearLayerConfig((128, 200), (128, 100), scalar_types.uint4, torch.bfloat16, 128, zero_points=True),
            "100 outputs of a rank are no multiple of a word's 8",
        ),
        (layer_config(out=torch.float32), "results are in torch.bfloat16, as its inputs, not in torch.float32"),
    ],
)
def test_leaves_the_rest_with_a_reason(config: MPLinearLayerConfig, reason: str) -> None:
    implements, told = AerieInt4GemmLinearKernel.can_implement(config)
    assert not implements
    assert told is not None
    assert told.startswith("int4_gemm: ")
    assert reason in told


@pytest.mark.usefixtures("gpu_class")
def test_leaves_all_layers_where_results_must_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs, "VLLM_BATCH_INVARIANT", True)
    implements, reason = AerieInt4GemmLinearKernel.can_implement(layer_config())
    assert not implements
    assert "depends on how many there are" in (reason or "")


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    ("choice", "gpu", "outputs", "ours", "why"),
    [
        ("auto", "Example GPU", OUTPUTS, True, f"{RESULT} shows it ahead on Example GPU"),
        ("auto", "Example GPU", 2 * OUTPUTS, False, "no committed measurement shows it ahead on Example GPU"),
        ("auto", "Unknown GPU", OUTPUTS, False, NOT_MEASURED),
        ("aerie", "Unknown GPU", OUTPUTS, True, f"{CHOICE_VARIABLE}=aerie"),
        ("vllm", "Example GPU", OUTPUTS, False, f"{CHOICE_VARIABLE}=vllm"),
    ],
)
def test_choice(monkeypatch: pytest.MonkeyPatch, choice: str, gpu: str, outputs: int, ours: bool, why: str) -> None:
    called(monkeypatch, gpu)
    monkeypatch.setenv(CHOICE_VARIABLE, choice)
    name, reason = vllm_linear.serving_kernel("bfloat16", GROUP, (outputs, INPUTS))
    assert (name == "AerieInt4GemmLinearKernel") is ours
    assert why in reason


def test_no_gpu_has_been_measured_yet() -> None:
    """So `auto` is `vllm` on every GPU; the first table with such a list removes this test."""
    assert not any(tuning.table(path.stem).ahead for path in tuning.TABLES.glob("*.json"))


class Layer(torch.nn.Module):
    """A layer with a kernel, as the log's report sees it."""

    def __init__(self, kernel: object) -> None:
        super().__init__()
        self.quant_method = type("Method", (), {"kernel": kernel})()


@pytest.mark.usefixtures("on_gpu")
def test_the_log_tells_why_either_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = AerieInt4GemmLinearKernel(layer_config(), "words", "scales")
    theirs = CPUWNA16LinearKernel(layer_config(), "words", "scales")
    assert vllm_report.server(Layer(ours)) == (
        f"AerieInt4GemmLinearKernel (aerie::int4_gemm, bfloat16, because {CHOICE_VARIABLE}=aerie)"
    )
    assert vllm_report.server(Layer(theirs)) == (
        "CPUWNA16LinearKernel (not AerieInt4GemmLinearKernel: vLLM was told to leave it out)"
    )
    monkeypatch.setenv(CHOICE_VARIABLE, "auto")
    called(monkeypatch, "Unknown GPU")
    assert vllm_report.server(Layer(theirs)) == (
        f"CPUWNA16LinearKernel (not AerieInt4GemmLinearKernel: int4_gemm: {NOT_MEASURED}; "
        f"{CHOICE_VARIABLE}=aerie takes it all the same)"
    )
