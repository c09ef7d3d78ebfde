# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from aerie.benchmarks.losslessness.greedy import compare as compare_greedy
from aerie.benchmarks.losslessness.greedy import first_difference
from aerie.benchmarks.losslessness.temperature import ENDED, figures_of, first_tokens
from aerie.benchmarks.losslessness.total_variation import (
    Samples_nL,
    compare,
    leak,
    mean_total_variation,
    total_variation,
)

SAMPLES, LENGTH, PROMPTS = 300, 3, 4
WEIGHTS = np.array([0.5, 0.2, 0.15, 0.1, 0.05])


def draw(seed: int) -> list[Samples_nL]:
    rng = np.random.default_rng(seed)
    return [rng.choice(len(WEIGHTS), size=(SAMPLES, LENGTH), p=WEIGHTS) for _ in range(PROMPTS)]


@pytest.mark.parametrize(
    ("ours", "theirs", "place"), [((1, 2), (1, 2), None), ((1, 2), (1, 3), 1), ((1,), (1, 3), 1), ((), (1,), 0)]
)
def test_first_difference(ours: tuple[int, ...], theirs: tuple[int, ...], place: int | None) -> None:
    assert first_difference(ours, theirs) == place


def test_greedy_comparison_names_the_prompts_that_differ() -> None:
    compared = compare_greedy([(1, 2), (1, 2, 3)], [(1, 2), (1, 2, 4)])
    assert (compared["prompts"], compared["identical"], compared["tokens"]) == (2, 1, 5)
    assert compared["differing"] == [{"prompt": 1, "first_difference": 2}]


def test_total_variation_of_known_distributions() -> None:
    assert total_variation(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])) == 0
    assert total_variation(np.array([0, 0, 0, 0]), np.array([7, 7, 7, 7])) == 1
    assert total_variation(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])) == 0.25
    assert mean_total_variation(np.array([[0, 0], [1, 1]]), np.array([[0, 1], [1, 1]])) == 0.25


def test_first_tokens_start_with_the_second_and_mark_the_end() -> None:
    rows = first_tokens([(9, 1, 2, 3, 4), (9, 1), (9,)], 3)
    assert rows.tolist() == [[1, 2, 3], [1, ENDED, ENDED], [ENDED, ENDED, ENDED]]


def test_samples_of_one_distribution_pass_and_the_power_is_stated() -> None:
    test = compare(draw(0), draw(1), seed=2, permutations=200)
    assert test.p_value > 0.05
    assert test.statistic < test.critical
    assert test.detectable is not None
    assert test.detectable < 0.12
    assert test.detectable_leak is not None
    assert test.detectable < test.detectable_leak <= 0.25
    assert figures_of(test)["t1_detectable"] == test.detectable


def test_a_leaking_sampler_is_found() -> None:
    rng = np.random.default_rng(3)
    leaky = [leak(samples, 0.2, rng)[0] for samples in draw(1)]
    test = compare(draw(0), leaky, seed=2, permutations=200)
    assert test.p_value < 0.01
    assert test.statistic > test.critical


def test_leak_says_how_far_it_moves_the_distribution() -> None:
    samples = np.array([[0], [0], [0], [1]])
    _, true = leak(samples, 0.4, np.random.default_rng(0))
    assert true == pytest.approx(0.4 * 0.25)


def test_outcome_is_the_same_for_the_same_seed() -> None:
    assert compare(draw(0), draw(1), seed=2, permutations=50) == compare(draw(0), draw(1), seed=2, permutations=50)
