# SPDX-License-Identifier: Apache-2.0
"""A sweep's order, prompts and resumption with a measurer that is told what to see, and its figures on made runs."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue, ValidationError

from aerie.benchmarks.points import Record
from aerie.benchmarks.prompts import Prompt
from aerie.benchmarks.results_file import Run
from aerie.benchmarks.serving.load import TIMES, LoadReport
from aerie.benchmarks.serving.rounds import Round
from aerie.benchmarks.serving.sweep import Cell, Sweep, SweepOptions, Turn, finished, in_turn, measure_missing, record
from aerie.benchmarks.serving.sweep_figures import crossing, figures
from aerie.benchmarks.serving.variants import Variant

LATENCIES = {f"{kind}_{time}_ms": 1.0 for time in TIMES.split(",") for kind in ("mean", "median", "p90", "p99")}


def a_sweep(model: Path, names: Sequence[str] = ("none", "k4"), prompts: int = 1000, **changes: object) -> Sweep:
    settings: dict[str, object] = {"model": model, "concurrencies": (1, 4), "temperatures": (0.0, 1.0), "count": 4}
    pool = [Prompt(f"<ask> {place}", (place,)) for place in range(prompts)]
    options = SweepOptions.model_validate(settings | changes)
    return Sweep([Variant(name=name) for name in names], {"clinic": pool}, options)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


class Measurer:
    """Sees a rate that is its turn's number; `stop_at` is when Ctrl-C comes."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.turns: list[Turn] = []
        self.stop_at = stop_at

    def __call__(self, turn: Turn, prompts: Sequence[Prompt]) -> Record:
        if len(self.turns) == self.stop_at:
            raise KeyboardInterrupt
        self.turns.append(turn)
        return {"variant": turn.variant.name, "turn": len(self.turns), "prompts": [one.text for one in prompts]}


def test_the_order_of_variants_is_turned_each_round() -> None:
    variants = [Variant(name=name) for name in "abc"]
    orders = ["".join(one.name for one in in_turn(variants, index)) for index in range(6)]
    assert orders == ["abc", "cba", "bca", "acb", "cab", "bac"]
    assert ["".join(one.name for one in in_turn(variants[:2], index)) for index in range(4)] == ["ab", "ba", "ba", "ab"]


def test_variants_meet_each_cell_in_turn_on_the_same_prompts_and_no_cell_on_another_s(model: Path) -> None:
    sweep = a_sweep(model, rounds=2)
    turns = list(sweep.turns())
    assert len(turns) == 2 * 2 * 2 * 2
    for first, second in zip(turns[::2], turns[1::2], strict=True):
        assert first.cell == second.cell
        assert {first.variant.name, second.variant.name} == {"none", "k4"}
    sizes = {cell: len(sweep.prompts(cell)) for cell in sweep.cells}
    assert {cell.concurrency: size for cell, size in sizes.items()} == {1: 4, 4: 8}
    put = [one for cell in sweep.cells for one in sweep.prompts(cell)]
    assert len(set(put)) == len(put) == 2 * 2 * (4 + 8)
    assert not set(put) & set(sweep.warm_up_prompts)
    assert sweep.options.prompts_needed == len(put) + 4
    assert all(sweep.repeated(cell) == 0 for cell in sweep.cells)


def test_a_short_file_is_gone_through_again_and_that_is_counted(model: Path) -> None:
    sweep = a_sweep(model, prompts=10, rounds=1, temperatures=(0.0,))
    assert [sweep.repeated(cell) for cell in sweep.cells] == [0, 2]
    assert [one.token_ids[0] for one in sweep.prompts(sweep.cells[1])] == [4, 5, 6, 7, 8, 9, 0, 1]


def test_ctrl_c_keeps_what_was_measured_and_the_same_sweep_goes_on(model: Path, tmp_path: Path) -> None:
    sweep = a_sweep(model, rounds=1)
    points = sweep.points(tmp_path)
    first = Measurer(stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        measure_missing(sweep, points, first)
    assert [run.measured["turn"] for run in finished(sweep, points)] == [1, 2, 3]
    second = Measurer()
    measure_missing(sweep, sweep.points(tmp_path), second)
    assert [*first.turns, *second.turns] == list(sweep.turns())
    assert len(finished(sweep, points)) == 8
    third = Measurer(stop_at=0)
    measure_missing(sweep, points, third)
    assert third.turns == []


def test_a_change_of_what_shapes_a_point_takes_nothing_old_for_new(model: Path, tmp_path: Path) -> None:
    folders = {one.points(tmp_path).folder for one in (a_sweep(model), a_sweep(model, seed=1), a_sweep(model, count=5))}
    folders.add(a_sweep(model, names=("none", "k2")).points(tmp_path).folder)
    folders.add(a_sweep(model, prompts=999).points(tmp_path).folder)
    (model / "config.json").write_text("[]")
    folders.add(a_sweep(model).points(tmp_path).folder)
    assert len(folders) == 6


def test_a_variant_is_arguments_or_a_url_under_a_plain_name() -> None:
    with pytest.raises(ValidationError, match="not both"):
        Variant(name="x", url="http://127.0.0.1:1", arguments=("--no-draft",))
    with pytest.raises(ValidationError):
        Variant(name="a b")


def one_run(variant: str, tokens_per_s: float = 10.0, **changes: JsonValue) -> Run:
    """100 tokens at a rate; without speculation unless changed."""
    measured: Record = {
        "variant": variant, "scenario": "clinic", "concurrency": 1, "temperature": 0.0, "index": 0,
        "output_tokens": 100, "duration_s": 100 / tokens_per_s, "output_tokens_per_s": tokens_per_s,
        "median_ttft_ms": 5.0, "median_tpot_ms": 50.0, "goodput_per_s": None, "steps": None, "accepted": None,
        "texts": "aa bb",
    }  # fmt: skip
    return Run(benchmark="serving", measured=measured | changes)


def test_rates_and_speedups_are_pooled_over_rounds() -> None:
    rates = {"none": (10.0, 20.0), "plain-k4": (20.0, 60.0)}
    runs = [one_run(name, rate, index=index) for name, both in rates.items() for index, rate in enumerate(both)]
    found = figures(runs)
    assert found["tokens_per_s_none_c1"] == pytest.approx(200 / 15, rel=1e-4)
    assert found["tokens_per_s_plain_k4_c1"] == pytest.approx(30, rel=1e-4)
    assert found["speedup_plain_k4_c1"] == pytest.approx(30 / (200 / 15), rel=1e-4)
    assert found["speedup_plain_k4_c1_std"] == pytest.approx(2**-0.5, rel=1e-4)
    assert (found["ttft_ms_none_c1"], found["tpot_ms_none_c1"]) == (5, 50)
    assert "speedup_none_c1" not in found
    assert "acceptance_length_none_c1" not in found


def test_acceptance_weighs_every_step_the_same_and_goodput_every_second() -> None:
    runs = [
        one_run("k4", 10.0, index=0, steps=10, accepted=20, goodput_per_s=1.0),
        one_run("k4", 30.0, index=1, steps=30, accepted=0, goodput_per_s=5.0),
    ]
    found = figures(runs)
    assert found["acceptance_length_k4_c1"] == 1.5
    assert found["goodput_per_s_k4_c1"] == pytest.approx(2)


def test_texts_are_compared_at_temperature_0_only() -> None:
    greedy = [one_run("none"), one_run("k4", texts="aa cc")]
    assert figures(greedy)["identical_k4_c1"] == 0.5
    drawn = [one_run(name, temperature=1.0, texts=None) for name in ("none", "k4")]
    assert "identical_k4_c1" not in figures(drawn)


def test_only_rounds_that_both_did_are_compared() -> None:
    runs = [one_run("none", 10.0), one_run("k4", 20.0), one_run("none", 40.0, index=1)]
    found = figures(runs)
    assert found["speedup_k4_c1"] == 2
    assert "speedup_k4_c1_std" not in found
    assert "speedup_k4_c1" not in figures(runs[1:])


def test_further_scenarios_and_temperatures_are_named() -> None:
    cells: list[tuple[str, float]] = [("clinic", 0.0), ("clinic", 0.5), ("gsm8k", 0.0), ("gsm8k", 0.5)]
    runs = [one_run("none", scenario=scenario, temperature=temperature) for scenario, temperature in cells]
    rates = [name for name in figures(runs) if name.startswith("tokens_per_s")]
    suffixes = ("", "_t0_5", "_gsm8k", "_gsm8k_t0_5")
    assert rates == [f"tokens_per_s_none{suffix}_c1" for suffix in suffixes]


def test_the_crossover_is_the_last_concurrency_before_speculation_loses() -> None:
    assert crossing({1: 2.0, 2: 1.0, 4: 0.9, 8: 1.1}) == 2
    assert crossing({1: 0.9}) == 0
    assert crossing({1: 2.0, 2: 1.5}) is None
    runs = [one_run("none", concurrency=level) for level in (1, 2)]
    runs += [one_run("k4", rate, concurrency=level) for level, rate in ((1, 20.0), (2, 5.0))]
    assert figures(runs)["crossover_k4"] == 1


def test_a_record_keeps_digests_of_texts_not_texts(model: Path) -> None:
    report = LoadReport.model_validate(
        LATENCIES
        | {"duration_s": 2.0, "requests": 2, "input_tokens": 9, "output_tokens": 100, "output_tokens_per_s": 50.0}
        | {"requests_per_s": 1.0, "client_cpu_s": 1.0, "texts": ("yes", "no"), "spec_decode_num_drafts": 10}
        | {"spec_decode_accepted_tokens": 15, "spec_decode_draft_tokens": 40, "spec_decode_positions": (0.9, 0.6)}
    )
    done = Round(
        server="k4", index=0, concurrency=1, report=report, cores_server=1.0, cores_waiting=0.0, cores_others=0.0
    )
    turn = Turn(Variant(name="k4", draft_tokens=4), Cell(0, "clinic", 0.0, 1))
    kept = record(turn, done, repeated=0)
    assert "yes" not in str(kept.values())
    assert len(set(str(kept["texts"]).split())) == 2
    assert (kept["draft_tokens"], kept["acceptance_length"], kept["acceptance_positions"]) == (4, 2.5, [0.9, 0.6])
    assert kept["p90_e2el_ms"] == 1.0
    drawn = record(Turn(turn.variant, Cell(0, "clinic", 1.0, 1)), done, repeated=0)
    assert drawn["texts"] is None
