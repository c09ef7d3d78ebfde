# SPDX-License-Identifier: Apache-2.0
"""The trials of `aerie tune`, and the finals of its proof, on made-up rates."""

import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from aerie.benchmarks.points import Points, Record
from aerie.benchmarks.results_file import Run
from aerie.benchmarks.serving.load import LoadOptions, bench_arguments
from aerie.benchmarks.serving.sweep import Sweep, SweepOptions, Turn, finished, measure_missing
from aerie.benchmarks.serving.variants import Variant
from aerie.benchmarks.tune import prove, trial
from aerie.benchmarks.tune.model import LAST
from aerie.server.tuning import check_schedule

PREDICTED = {
    1: {0: 50.0, 1: 60.0, 2: 95.0, 3: 100.0, 4: 99.0, 5: 98.0, 6: 97.0},
    8: {0: 80.0, 1: 90.0, 2: 100.0, 3: 95.0, 4: 70.0, 5: 60.0, 6: 50.0},
}
TOKENS = 1000


def tried(concurrency: int, k: int, index: int, rate: float) -> Record:
    return {
        "concurrency": concurrency, "draft_tokens": k, "index": index, "output_tokens": TOKENS,
        "duration_s": TOKENS / rate,
    }  # fmt: skip


def all_tries(points: Points, rounds: int, rate: Callable[[trial.Try], float]) -> list[trial.Try]:
    """Each is kept before the next one is asked for, as the study does."""
    done = []
    for one in trial.tries(PREDICTED, rounds, points):
        record = tried(one.concurrency, one.draft_tokens, one.index, rate(one))
        points.kept(one.name, lambda record=record: [record])  # type: ignore[misc]  # a default's type is not inferred
        done.append(one)
    return done


def test_the_likely_ones_are_tried_and_after_two_rounds_the_best_of_them(tmp_path: Path) -> None:
    """At 1 the prediction has it wrong: 6 is best. At 8 it has it right."""
    true = {(1, k): 100.0 + k for k in range(7)} | {(8, k): 100.0 - k for k in range(7)}
    points = Points(tmp_path, {})
    done = all_tries(points, 4, lambda one: true[one.concurrency, one.draft_tokens])
    field = {
        (index, level): sorted(one.draft_tokens for one in done if (one.index, one.concurrency) == (index, level))
        for index in range(4)
        for level in (1, 8)
    }
    assert field[0, 1] == field[1, 1] == [2, 3, 4, 5, 6]
    assert field[2, 1] == field[3, 1] == [4, 5, 6]
    assert field[0, 8] == field[3, 8] == [1, 2, 3]
    assert len(done) == trial.count(PREDICTED, 4)
    assert [one.draft_tokens for one in done[:5]] == [2, 3, 4, 5, 6]
    second = [one for one in done if one.index == 1]
    assert [one.draft_tokens for one in second[:5]] == [6, 5, 4, 3, 2]
    again = list(trial.tries(PREDICTED, 4, points))
    assert again == done

    measured = trial.outcome([record for one in done for record in points.found(one.name) or []])
    assert measured[1] == pytest.approx({k: 100 + k for k in range(2, 7)})
    assert measured[8] == pytest.approx({k: 100 - k for k in range(1, 4)})


def test_a_turn_that_was_disturbed_does_not_count() -> None:
    """And a round in which all are slow, as its answers are longer, is as good as the others."""
    rates = {3: [80.0, 40.0, 85.0], 4: [82.0, 41.0, 87.0], 5: [90.0, 45.0, 50.0]}
    records = [tried(1, k, index, rate) for k, mine in rates.items() for index, rate in enumerate(mine)]
    found = trial.outcome(records)[1]
    assert sorted(found, key=lambda k: found[k]) == [3, 4, 5]
    assert found[5] / found[4] == pytest.approx(90 / 82, abs=0.01)


def test_the_next_k_begins_where_it_overtakes_between_two_loads() -> None:
    """By interpolation K = 3 leads K = 1 up to the middle of 4 and 8; whether both were tried does not matter."""
    predicted = {4: {1: 90.0, 3: 110.0}, 8: {1: 110.0, 3: 90.0}}
    for measured in (predicted, {4: {3: 110.0}, 8: {1: 110.0, 3: 90.0}}):
        found = trial.schedule(predicted, measured)
        check_schedule(found)
        assert found == ((1, 6, 3), (7, LAST, 1))


def test_a_prediction_that_is_off_at_a_load_is_off_for_all_ks_there() -> None:
    """Measured half of what was predicted: so would have been the K that was not tried."""
    predicted = {4: {1: 180.0, 3: 220.0}, 8: {1: 110.0, 3: 90.0}}
    assert trial.schedule(predicted, {4: {3: 110.0}, 8: {1: 110.0, 3: 90.0}}) == ((1, 6, 3), (7, LAST, 1))


def test_predictions_are_corrected_by_what_the_trials_found() -> None:
    """At 4 what was tried was 1.5 times as fast as predicted, at 8 half as fast."""
    found = trial.corrections(
        {4: {1: 100.0, 3: 100.0, 5: 80.0}, 8: {1: 100.0}}, {4: {1: 140.0, 3: 160.0}, 8: {1: 50.0}}
    )
    assert found == {4: 1.5, 8: 0.5}
    assert trial.corrections({}, {}) == {}


def test_equals_take_their_neighbours_k() -> None:
    measured = {1: {4: 100.0, 5: 100.5}, 8: {4: 100.0, 5: 90.0}}
    assert trial.schedule(measured, measured) == ((1, LAST, 4),)


def test_a_prompt_put_before_is_not_found_in_the_prefix_cache(tmp_path: Path) -> None:
    options = LoadOptions(tokenizer=tmp_path, max_tokens=8, concurrency=1)
    plain = bench_arguments("http://a", tmp_path / "d", tmp_path / "s", 1, options)
    salted = options.model_copy(update={"cache_salt": "trial-0"})
    words = bench_arguments("http://a", tmp_path / "d", tmp_path / "s", 1, salted)
    assert '"cache_salt": "trial-0"' in words[words.index("--extra-body") + 1]
    assert "cache_salt" not in plain[plain.index("--extra-body") + 1]


def served(variant: str, index: int, rate: float, concurrency: int = 1) -> Run:
    return Run(
        benchmark="serving",
        measured={
            "variant": variant, "scenario": "held-out", "temperature": 0.0, "concurrency": concurrency, "index": index,
            "output_tokens": TOKENS, "duration_s": TOKENS / rate, "output_tokens_per_s": rate, "steps": None,
            "goodput_per_s": None, "texts": None, "median_ttft_ms": 1.0, "median_tpot_ms": 1.0,
        },
    )  # fmt: skip


def test_finalists_are_the_schedule_and_who_may_be_the_best_other() -> None:
    rates = {"none": 50, "k1": 94.5, "k2": 99, "k3": 100, "k4": 97, "k5": 96, "k6": 95, "tuned": 80}
    served_runs = [served(name, index, rate) for name, rate in rates.items() for index in range(2)]
    assert prove.finalists(served_runs) == {1: ["k3", "k2", "k4", "k5", "tuned"]}


def test_finals_go_on_with_the_finalists_on_prompts_of_their_own(tmp_path: Path) -> None:
    variants = [Variant(name=name, arguments=(name,)) for name in ("none", "k1", "tuned")]
    chosen = SweepOptions(model=tmp_path, concurrencies=(1, 2), rounds=2, count=1)
    plan = Sweep(variants, {"held-out": [None] * 20}, chosen)  # type: ignore[list-item]  # none is put
    rates = {"none": 50.0, "k1": 100.0, "tuned": 100.0}
    points = Points(tmp_path, {})

    def put(turn: Turn, _: object) -> Record:
        name = turn.variant.name
        return served(name, turn.cell.index, rates[name], turn.cell.concurrency).measured

    measure_missing(plan, points, put)
    second = prove.finals(plan, [None] * 20, 2, finished(plan, points))  # type: ignore[list-item]
    assert [turn.name for turn in second.turns()] == [
        f"r{index}-held-out-t0-c{level}-{name}"
        for index, order in ((2, ("tuned", "k1")), (3, ("k1", "tuned")))
        for level in (1, 2)
        for name in order
    ]
    measure_missing(second, points, put)
    runs = finished(plan, points) + finished(second, points)
    assert prove.ratios(runs, 1) == {"tuned_ratio": 1, "tuned_ratio_std": 0, "tuned_hindsight": 1}


def test_the_best_of_several_equals_is_not_held_against_the_schedule() -> None:
    """All are the same; the rate of a round has a spread of a tenth. In hindsight one of five was faster."""
    draws = random.Random(0)
    names = ("none", "k1", "k2", "k3", "k4", "tuned")

    def drawn(rounds: int) -> Sequence[Run]:
        return [served(name, index, 100 * draws.gauss(1, 0.1)) for name in names for index in range(rounds)]

    found = [prove.ratios(drawn(6), 1) for _ in range(200)]
    fair, hindsight = (sum(one[name] for one in found) / len(found) for name in ("tuned_ratio", "tuned_hindsight"))
    assert fair == pytest.approx(1, abs=0.01)
    assert hindsight < 0.96


def test_a_schedule_that_is_slower_than_one_k_is_told_so() -> None:
    runs = [served(name, index, rate) for name, rate in (("k1", 100), ("k2", 80), ("tuned", 90)) for index in range(3)]
    assert prove.ratios(runs, 1) == pytest.approx({"tuned_ratio": 0.9, "tuned_ratio_std": 0, "tuned_hindsight": 0.9})


def test_of_an_interrupted_run_count_the_rounds_that_are_whole() -> None:
    whole = list(itertools.product(("k1", "k2", "tuned"), range(3)))
    runs = [served(name, index, 100) for name, index in [*whole, ("k1", 3), ("tuned", 3)]]
    assert prove.ratios(runs, 1) == pytest.approx({"tuned_ratio": 1, "tuned_ratio_std": 0, "tuned_hindsight": 1})
    assert prove.ratios([one for one in runs if one.measured["variant"] != "tuned"], 1) == {}
