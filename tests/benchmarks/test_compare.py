# SPDX-License-Identifier: Apache-2.0
"""`aerie bench compare`: what differs beyond the spread, which way, and what says nothing about each other."""

from pathlib import Path

import pytest

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.report import compare, meanings
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.cli import app

PROVENANCE = Provenance(
    commit="abc", versions={"torch": "1"}, arguments={"rounds": 3}, seeds=[0], inputs={"model/config.json": "00"},
    machine={"cpu": "a processor", "cores": 2},
)  # fmt: skip


def result(figures: dict[str, float], benchmark: str = "serving.overhead", **changes: object) -> ResultFile:
    provenance = PROVENANCE.model_copy(update=changes)
    return ResultFile(provenance=provenance, runs=[Run(benchmark=benchmark, measured={})], figures=figures)


def verdict(name: str, before: float, after: float, std: float | None = 0.1, **more: float) -> compare.Verdict:
    """Of one figure with the same spread in both files."""
    spread = {} if std is None else {f"{name}_std": std}
    found = compare.changes(result({name: before, **spread}), result({name: after, **spread}), **more)
    assert [one.name for one in found] == [name], "a spread is no figure"
    return found[0].verdict


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("tokens_per_s_k4_c8", "up"), ("speedup_k4_c1", "up"), ("speedup_k4_t1_c1", "up"),
        ("acceptance_length", "up"),
        ("acceptance_position_2_gated", "up"), ("throughput_ratio_c1", "up"), ("marlin_ratio_m16", "up"),
        ("ratio_bf16_m1", "up"), ("tuned_ratio_c4", "up"), ("min_ratio_vs_best", "up"), ("crossover_k4", "up"),
        ("ttft_ms_k4_c1", "down"), ("tpot_ms_none_c2", "down"), ("ttft_ratio_c1", "down"), ("reject_p99_ms", "down"),
        ("dense_rtn_g64_sym_kl", "down"), ("dense_rtn_g64_sym_ppl_loss", "down"),
        ("dense_rtn_g64_sym_ratio", "down"), ("dense_rtn_g64_asym_ratio", "down"),
        ("dense_rtn_g64_sym_acceptance", "up"), ("memory_ratio", "down"), ("p99_ratio_accepted", "down"),
        ("recovery_s", "down"), ("peak_mib_ours_ttt7_512", "down"), ("us_4096x4096_m1", "down"), ("lost", "down"),
        ("prediction_error_median", "down"), ("memory_growth_mib", "down"), ("identical_k4_c8", "up"),
    ],
)  # fmt: skip
def test_the_way_that_is_better_goes_by_the_name(name: str, better: str) -> None:
    found = meanings.meaning(name)
    assert found is not None
    assert found.better == better


@pytest.mark.parametrize("name", ["control_memory_mib_per_1000_requests", "answered", "t1_p_value", "speedup_c1_std"])
def test_some_figures_have_no_better_way(name: str) -> None:
    assert meanings.meaning(name) is None


def test_a_change_counts_beyond_two_spreads_of_each_side() -> None:
    assert verdict("speedup_c1", 2.0, 1.65) == "within", "0.35 of 2 x (0.1 + 0.1)"
    assert verdict("speedup_c1", 2.0, 1.55) == "worse"
    assert verdict("speedup_c1", 2.0, 2.45) == "better"
    assert verdict("ttft_ms_aerie_c1", 2.0, 2.45) == "worse"
    assert verdict("speedup_c1", 2.0, 1.75, spreads_each=1.0) == "worse"
    assert verdict("answered", 2.0, 2.45) == "changed"
    assert verdict("speedup_c1", 2.0, 2.0, None) == "within"


def test_without_a_spread_nothing_is_judged_but_what_is_counted() -> None:
    assert verdict("speedup_c1", 2.0, 1.0, None) == "unknown"
    assert verdict("sm90_m16_per_weight", 2.2, 2.3, None) == "worse"
    assert verdict("sm90_m16_programs", 2.0, 3.0, None) == "better"


def test_the_spread_over_rounds_serves_where_there_is_no_std() -> None:
    def rounds(*ttft: float) -> ResultFile:
        cell = {"variant": "k4", "scenario": "s", "temperature": 0.0, "concurrency": 2, "duration_s": 1.0}
        runs = [
            Run.model_validate({"benchmark": "serving", "measured": {**cell, "index": index, "median_ttft_ms": one}})
            for index, one in enumerate(ttft)
        ]
        middle = sorted(ttft)[len(ttft) // 2]
        return ResultFile(provenance=PROVENANCE, runs=runs, figures={"ttft_ms_k4_c2": middle})

    (close,) = compare.changes(rounds(90, 100, 110), rounds(110, 120, 130))
    (far,) = compare.changes(rounds(90, 100, 110), rounds(190, 200, 210))
    assert (close.margin, close.verdict, far.verdict) == (40.0, "within", "worse")


def test_other_benchmarks_machines_and_inputs_are_refused() -> None:
    one = result({"speedup_c1": 1.0})
    with pytest.raises(compare.NotComparableError, match=r"serving\.overhead against serving\.soak"):
        compare.check(one, result({"speedup_c1": 1.0}, "serving.soak"), anyway=True)
    for changes, said in (
        ({"machine": {"cpu": "another", "cores": 2}}, "machine differ: cpu a processor against another"),
        ({"inputs": {"model/config.json": "11"}}, r"inputs differ: model/config\.json 00 against 11"),
    ):
        other = result({"speedup_c1": 1.0}, **changes)
        with pytest.raises(compare.NotComparableError, match=f"{said}; --anyway"):
            compare.check(one, other)
        assert compare.check(one, other, anyway=True)


def test_what_else_differs_is_told() -> None:
    one = result({"speedup_c1": 1.0})
    other = result({"speedup_c1": 1.0, "complete": 0.0}, versions={"torch": "2"}, seeds=[1], arguments={"rounds": 5})
    assert compare.check(one, other) == [
        "versions differ: torch 1 against 2", "arguments differ: rounds 3 against 5", "seeds differ: [0] against [1]",
        "B was cut short",
    ]  # fmt: skip


def written(folder: Path, name: str, made: ResultFile) -> str:
    made.write(folder / name)
    return str(folder / name)


def test_the_status_tells_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = written(tmp_path, "old.json", result({"speedup_c1": 2.0, "speedup_c1_std": 0.1, "gone": 1.0}))
    slow = written(tmp_path, "slow.json", result({"speedup_c1": 1.0, "speedup_c1_std": 0.1, "new": 1.0}))
    assert app(["bench", "compare", old, slow], standalone_mode=False) == 1
    said = capsys.readouterr().out
    for part in ("speedup_c1", "-50.0%", "worse", "1 figures in both", "only in A: gone", "only in B: new"):
        assert part in said
    assert app(["bench", "compare", slow, old], standalone_mode=False) == 0
    assert "better" in capsys.readouterr().out
    assert app(["bench", "compare", old, old, "--all"], standalone_mode=False) == 0
    assert "within the spread" in capsys.readouterr().out


def test_files_without_a_figure_in_common_say_nothing() -> None:
    with pytest.raises(BenchmarkError, match="no figure in common"):
        compare.run(result({"lost": 0.0}), result({"flat": 1.0}), anyway=False, everything=False)
