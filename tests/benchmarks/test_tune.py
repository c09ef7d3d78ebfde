# SPDX-License-Identifier: Apache-2.0
"""`aerie tune` on made-up machines, whose best K is known."""

import dataclasses
import itertools
import random
from pathlib import Path

import pytest

from aerie.benchmarks.prompts import PromptsError
from aerie.benchmarks.results_file import Run
from aerie.benchmarks.serving.sweep import SweepOptions
from aerie.benchmarks.tune import prove
from aerie.benchmarks.tune.measure import histogram
from aerie.benchmarks.tune.model import LAST, Costs, Load, between, choose, predict, rates, schedule, scheduled, yields
from aerie.benchmarks.tune.run import Options, chats_of, plan_of
from aerie.benchmarks.tune.study import StudyOptions, acceptance_of, costs_of, tasks
from aerie.benchmarks.tune.watch import TuneError
from aerie.server.errors import BadOption
from aerie.server.tuning import check_schedule, describe

BATCHES = (1, 2, 4, 8, 16, 32)
MOST = 7
POSITIONS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
STEPS_SEEN = 1000
LENGTH = 40


def machine(fixed: float, row: float, draft: float) -> Costs:
    """A step takes so many ms, so many more for each verified token, and for each drafted position."""
    step = {k: {batch: fixed + row * batch * (k + 1) + draft * k for batch in BATCHES} for k in range(MOST + 1)}
    return Costs(step=step, plain={batch: fixed + row * batch for batch in BATCHES}, entry={1: 0.0, 8: 0.0})


def test_where_only_the_step_costs_the_most_drafted_tokens_are_best() -> None:
    assert schedule(machine(fixed=20, row=0, draft=0), POSITIONS, 0.01) == ((1, LAST, MOST),)


def test_where_every_token_costs_the_same_drafting_never_pays() -> None:
    """A rejected token is lost work then."""
    assert schedule(machine(fixed=0, row=1, draft=0), POSITIONS, 0.01) == ((1, LAST, 0),)


def test_the_schedule_falls_with_the_load_and_is_the_best_at_every_number_of_requests() -> None:
    costs = machine(fixed=20, row=0.5, draft=1)
    found = schedule(costs, POSITIONS, 0.0)
    check_schedule(found)
    ks = [k for _, _, k in found]
    assert ks == sorted(ks, reverse=True)
    assert len(ks) > 2
    for batch in BATCHES:
        by_k = rates(costs, POSITIONS, batch)
        assert by_k[scheduled(found, batch)] == max(by_k.values())
    for first, second in itertools.pairwise(found):
        at = rates(costs, POSITIONS, second[0])
        assert at[second[2]] > at[first[2]]
    assert found[0][0] == 1
    assert found[-1][1] == LAST


def test_a_change_of_k_must_bring_something() -> None:
    by_batch = {1: {2: 99.5, 3: 100.0}, 2: {2: 100.0, 3: 90.0}, 4: {2: 100.0, 3: 90.0}}
    assert choose(by_batch, 0.0) == {1: 3, 2: 2, 4: 2}
    assert choose(by_batch, 0.01) == {1: 2, 2: 2, 4: 2}


def test_k_never_rises_with_the_load_whatever_the_noise() -> None:
    """At 8 the highest K was lucky: taking it there would cost more at 1 and 16, where it came out slower."""
    by_batch = {1: {5: 100.0, 7: 97.0}, 8: {5: 98.0, 7: 100.0}, 16: {5: 100.0, 7: 99.0}}
    assert choose(by_batch, 0.0) == {1: 5, 8: 5, 16: 5}
    by_batch[8] = {5: 90.0, 7: 100.0}
    assert choose(by_batch, 0.0) == {1: 7, 8: 7, 16: 5}


def test_between_measured_numbers_times_are_interpolated() -> None:
    assert [between({2: 10.0, 4: 20.0}, place) for place in (1, 2, 3, 4, 9)] == [10, 10, 15, 20, 20]


def test_the_expected_tokens_of_a_step() -> None:
    assert yields(POSITIONS, 0) == 1
    assert yields(POSITIONS, 3) == pytest.approx(3.4)


@pytest.mark.parametrize("k", [0, 2, MOST])
@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_long_load_is_predicted_at_the_rate_of_a_full_batch(k: int, concurrency: int) -> None:
    costs = machine(fixed=20, row=0.5, draft=1)
    load = Load(concurrency, (2000,) * concurrency)
    rate = predict(costs, histogram(POSITIONS, STEPS_SEEN), lambda _: k, load)
    assert rate == pytest.approx(rates(costs, POSITIONS, concurrency)[k], rel=0.05)


def test_requests_that_enter_cost_their_prompts_and_a_server_without_a_draft_its_own_steps() -> None:
    costs = Costs(step={0: {1: 50.0}}, plain={1: 10.0}, entry={1: 100.0})
    assert predict(costs, (1,), lambda _: None, Load(1, (11, 11))) == pytest.approx(1000 * 22 / (2 * (100 + 10 * 10)))


def test_acceptance_by_position_is_a_histogram() -> None:
    counts = histogram((0.9, 0.5, 0.0), 10)
    assert counts == [1, 4, 5, 0]
    assert sum(counts) == 10


def studied(costs: Costs, noise: float) -> list[Run]:
    """What the study would have seen of such a machine."""
    draws = random.Random(0)
    found = [
        Run(
            benchmark="tune.step",
            measured={"batch": batch, "draft_tokens": k, "index": index, "step_ms": ms * draws.gauss(1, noise)},
        )
        for k, by_batch in [(None, costs.plain), *costs.step.items()]
        for batch, ms in by_batch.items()
        for index in range(3)
    ]
    entry = [
        Run(benchmark="tune.entry", measured={"concurrency": level, "request_ms": ms})
        for level, ms in costs.entry.items()
    ]
    acceptance = Run(
        benchmark="tune.acceptance",
        measured={
            "positions": [*POSITIONS],
            "histogram": [*histogram(POSITIONS, STEPS_SEEN)],
            "answer_tokens": [LENGTH] * 8,
        },
    )
    return [*found, *entry, acceptance]


def test_from_runs_to_costs_and_their_spread() -> None:
    costs, spread = costs_of(studied(machine(20, 0.5, 1), 0.02))
    assert costs.of_step(8, 3) == pytest.approx(20 + 0.5 * 32 + 3, rel=0.05)
    assert costs.of_step(8, None) == pytest.approx(24, rel=0.05)
    assert 0.01 < spread < 0.04


def served(variant: str, concurrency: int, rate: float) -> Run:
    return Run(
        benchmark="serving",
        measured={
            "variant": variant, "scenario": "held-out", "temperature": 0.0, "concurrency": concurrency, "index": 0,
            "output_tokens": 1000, "duration_s": 1000 / rate, "output_tokens_per_s": rate, "steps": None,
            "goodput_per_s": None, "texts": None, "median_ttft_ms": 1.0, "median_tpot_ms": 1.0,
        },
    )  # fmt: skip


def test_the_proof_s_figures(tmp_path: Path) -> None:
    costs = machine(20, 0.5, 1)
    runs = studied(costs, 0.0)
    found = schedule(costs, POSITIONS, 0.0)
    chosen = SweepOptions(model=tmp_path, concurrencies=(1, 32), count=8, max_tokens=LENGTH)
    predicted = prove.predictions(costs, acceptance_of(runs), found, MOST, chosen)
    assert {name for name, _ in predicted} == {"none", *(f"k{k}" for k in range(1, 8)), "tuned"}
    best = max(rate for (name, level), rate in predicted.items() if level == 32 and name != "tuned")
    assert predicted["tuned", 32] > 0.9 * best

    measured = [served(name, level, rate * 1.1) for (name, level), rate in predicted.items() if name != "tuned"]
    measured += [served("tuned", level, 0.99 * max(r for (_, at), r in predicted.items() if at == level) * 1.1)
                 for level in (1, 32)]  # fmt: skip
    pairs = prove.compared(predicted, measured)
    figures = prove.figures(measured, pairs)
    assert figures["prediction_error_median"] == pytest.approx(1 - 1 / 1.1, abs=0.01)
    assert figures["min_ratio_vs_best"] == min(figures["tuned_ratio_c1"], figures["tuned_ratio_c32"])
    assert figures["min_ratio_vs_best"] == pytest.approx(0.99, abs=0.02)
    assert figures["speedup_c1"] > 1.5
    assert prove.figures([], prove.compared(predicted, [])) == {}


def test_every_batch_meets_every_k_and_no_draft_on_each_server_s_own(tmp_path: Path) -> None:
    chosen = StudyOptions(model=tmp_path, batches=(1, 4), most=2, rounds=2, acceptance_count=3, max_tokens=8,
                          trial_rounds=0, sizes={})  # fmt: skip
    done = list(tasks(chosen, [None] * chosen.prompts_needed))  # type: ignore[list-item]  # none is put
    steps = [task for task in done if task.name.startswith("steps")]
    assert len(steps) == 2 * 2 * 4
    assert len({task.name for task in done}) == len(done)
    assert {task.server for task in steps if "plain" in task.name} == {"none"}


def test_a_schedule_in_words() -> None:
    assert describe(((1, 4, 5), (5, 12, 3), (13, LAST, 0))) == "K = 5 up to 4 requests, 3 up to 12, then 0"
    assert describe(((1, LAST, 4),)) == "K = 4"


def asked(tmp_path: Path, **changes: object) -> Options:
    """What the command line would say."""
    chosen = Options(
        model=tmp_path, draft=tmp_path, most=2, concurrencies=(1,), rounds=1, count=2, max_tokens=8, study_rounds=1,
        finals=0, trial_rounds=0, acceptance_count=2, prompts=None, serve_options=(), proves=False, work=tmp_path,
        seed=0,
    )  # fmt: skip
    return dataclasses.replace(chosen, **changes)  # type: ignore[arg-type]  # names and values belong together


@pytest.mark.parametrize(
    ("option", "fix"),
    [
        ("--dtype", "--serve-option: --dtype: it has no value; give one: --dtype=VALUE"),
        ("dtype=float32", "dtype: it stands behind no option"),
        ("--draft-tokens=4", "--serve-option --draft-tokens: tuning sets it itself"),
        ("--port=1", "--serve-option: --port: it is given by the benchmark"),
        ("--root-path=/", "--root-path: vLLM's option is refused"),
    ],
)
def test_options_of_the_server_that_tuning_cannot_take(tmp_path: Path, option: str, fix: str) -> None:
    with pytest.raises((TuneError, BadOption), match=fix):
        plan_of(asked(tmp_path, serve_options=(option,)))


def test_switches_and_options_of_vllm_reach_the_tuned_server(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").touch()
    chosen = asked(tmp_path, serve_options=("--enforce-eager", "--enable-prefix-caching", "--kv-cache-dtype=fp8"))
    settings = plan_of(chosen).settings
    assert settings.enforce_eager is True
    assert settings.engine_options == {"enable-prefix-caching": True, "kv-cache-dtype": "fp8"}


def test_a_file_of_few_prompts_is_gone_through_again_and_an_empty_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"messages": [{{"role": "user", "content": "{index}"}}]}}\n' for index in range(3)))
    chats = chats_of(asked(tmp_path, prompts=file), 5)
    assert [chat[0]["content"] for chat in chats] == ["0", "1", "2", "0", "1"]
    file.write_text("")
    with pytest.raises(PromptsError, match="holds no prompt"):
        chats_of(asked(tmp_path, prompts=file), 5)
