# SPDX-License-Identifier: Apache-2.0
"""INT4 against 16 and 32 bit: what the benchmark makes of its records, and that they outlive an interruption."""

from pathlib import Path

import pytest
import torch

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.kernels.int4_cpu import kernel_figures
from aerie.benchmarks.kernels.int4_cpu_point import Plain, last_level_bytes
from aerie.benchmarks.kernels.w4a16_cpu_sweep import Layer
from aerie.benchmarks.points import Points, Record, number
from aerie.benchmarks.serving.int4_engine import MIB, memory_figures, speed_figures
from aerie.kernels.w4a16_cpu import api

TOLERANCE = 1e-2
"""Bfloat16 rounds activation and result, 2^-9 each."""


def timed(outputs: int, round_: int, ours: float, **others: float) -> Record:
    return {"outputs": outputs, "inputs": 64, "rows": 1, "round": round_, "ours": ours, **others}


def test_a_ratio_is_the_median_over_rounds_of_the_geometric_mean_over_layers() -> None:
    figures = kernel_figures(
        [
            timed(32, 0, 1.0, bfloat16=2.0),
            timed(64, 0, 1.0, bfloat16=8.0),
            timed(32, 1, 2.0, bfloat16=6.0),
            timed(64, 1, 2.0, bfloat16=6.0),
            timed(32, 2, 1.0, bfloat16=5.0),
            timed(64, 2, 1.0, bfloat16=5.0),
        ]
    )
    assert figures == {"ratio_bf16_m1": 4.0, "ratio_bf16_m1_std": 1.0, "ratio_bf16_m1_min": 3.0}


def test_each_way_and_number_of_rows_has_its_figures() -> None:
    others = {"bfloat16": 2.0, "float32": 3.0, "dequantise": 4.0, "stock": 0.5}
    records = [timed(32, index, 1.0, **others) | {"rows": rows} for index in range(2) for rows in (1, 64)]
    figures = kernel_figures(records)
    assert {name: figures[f"ratio_{name}_m64"] for name in ("bf16", "fp32", "dequant", "stock")} == {
        "bf16": 2.0,
        "fp32": 3.0,
        "dequant": 4.0,
        "stock": 0.5,
    }
    assert len(figures) == 2 * 4 * 3


@pytest.mark.parametrize("kept", [1, 3])
def test_rounds_that_lack_a_layer_have_no_ratio(kept: int) -> None:
    records = [timed(outputs, index, 1.0, bfloat16=2.0) for index in range(2) for outputs in (32, 64)]
    with pytest.raises(BenchmarkError, match="round"):
        kernel_figures(records[:kept])


def served(weights: str, dtype: str, index: int, tokens: int, seconds: float) -> Record:
    return {
        "weights": weights,
        "dtype": dtype,
        "concurrency": 1,
        "round": index,
        "output_tokens": tokens,
        "seconds": seconds,
    }


ROUNDS = [
    served(weights, dtype, index, 8 + 8 * index, seconds)
    for index in range(2)
    for weights, dtype, seconds in (
        ("int4", "float32", 1.0),
        ("int4", "bfloat16", 1.5),
        ("bf16", "float32", 3.0 - index),
        ("bf16", "bfloat16", 2.0),
    )
]


def test_served_ratios_pool_rounds() -> None:
    figures = speed_figures(ROUNDS, 1)
    assert figures["e2e_tokens_per_s_int4_float32_c1"] == 12
    assert figures["e2e_ratio_c1"] == 2.5
    assert figures["e2e_ratio_c1_min"] == 2
    assert figures["e2e_ratio_bfloat16_c1"] == pytest.approx(4 / 3)
    assert figures["e2e_ratio_best_c1"] == 2  # float32 is INT4's faster dtype, bfloat16 the other's


@pytest.mark.parametrize("kept", [4, 7])
def test_every_engine_is_measured_in_every_round(kept: int) -> None:
    with pytest.raises(BenchmarkError, match="concurrency 1"):
        speed_figures(ROUNDS[:kept], 1)


def test_memory_is_compared_at_the_same_dtype() -> None:
    held: list[Record] = [
        {"weights": weights, "dtype": dtype, "parameter_bytes": size * MIB, "rss_bytes": (size + 100) * MIB}
        for weights, dtype, size in (
            ("int4", "float32", 100),
            ("int4", "bfloat16", 60),
            ("bf16", "float32", 400),
            ("bf16", "bfloat16", 200),
        )
    ]
    figures = memory_figures([*held, *ROUNDS])
    assert figures["memory_ratio"] == 0.25
    assert figures["memory_ratio_bfloat16"] == 0.3
    assert figures["rss_ratio"] == 0.4
    assert figures["parameter_mib_bf16_bfloat16"] == 200


def test_a_point_is_measured_once(tmp_path: Path) -> None:
    measured: list[Record] = [{"value": 1}]
    assert Points(tmp_path, {"seed": 0}).kept("a", lambda: measured) == measured
    assert Points(tmp_path, {"seed": 0}).kept("a", lambda: [{"value": 2}]) == measured
    assert Points(tmp_path, {"seed": 1}).kept("a", lambda: [{"value": 2}]) == [{"value": 2}]


def test_an_interrupted_point_is_not_kept(tmp_path: Path) -> None:
    def interrupted() -> list[Record]:
        raise KeyboardInterrupt

    points = Points(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        points.kept("a", interrupted)
    assert points.kept("a", lambda: [{"value": 2}]) == [{"value": 2}]


@pytest.mark.parametrize("value", ["slow", True, None])
def test_a_figure_must_be_a_number(value: str | bool | None) -> None:
    with pytest.raises(TypeError, match="ours"):
        number({"ours": value}, "ours")


def test_the_ways_compute_the_same_product() -> None:
    torch.manual_seed(0)
    layer = Layer(64, 128)
    x = torch.randn(4, 128)
    plain = Plain(layer)
    assert torch.equal(plain.weight(), layer.weight_bfloat16)
    assert layer.error(x, plain(x.bfloat16())) < TOLERANCE
    assert layer.error(x, api.w4a16_linear(x, layer.words_PB, layer.scales_GP2, 64)) < TOLERANCE


def test_the_largest_cache_is_flushed(tmp_path: Path) -> None:
    for index, size in enumerate(("48K", "2048K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}/size").write_text(f"{size}\n")
    assert last_level_bytes(tmp_path) == 2 << 20
    assert last_level_bytes(tmp_path / "none") == 32 << 20
