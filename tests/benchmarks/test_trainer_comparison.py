# SPDX-License-Identifier: Apache-2.0
"""The comparison of draft trainers: ratios, who goes first, how memory grows, the plot."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.training.agreement import gradient_difference
from aerie.benchmarks.training.growth import MIB, Peak, growth_figures, quadratic
from aerie.benchmarks.training.memory_plot import draw
from aerie.benchmarks.training.timing import Timed, fastest, order, ratio_figures

OURS = Timed("ours", "padded", "answers", steps=7, round=0, tokens=100, updates=2, seconds=1.0)
THEIRS = replace(OURS, side="speculators", arrangement="single", seconds=2.0)
TWO_ROUNDS = [OURS, THEIRS, replace(OURS, round=1, tokens=300), replace(THEIRS, round=1, tokens=300, seconds=9.0)]


def test_the_ratio_pools_rounds() -> None:
    figures = ratio_figures(TWO_ROUNDS, "ttt7")
    assert figures["tokens_per_s_ours_ttt7"] == 200
    assert figures["tokens_per_s_speculators_ttt7"] == pytest.approx(400 / 11, abs=1e-4)
    assert figures["speed_ratio_ttt7"] == 5.5
    assert figures["speed_ratio_ttt7_min"] == 2
    assert figures["speed_ratio_ttt7_std"] == pytest.approx(7 / 2**0.5, abs=1e-4)


def test_sides_that_saw_different_tokens_have_no_ratio() -> None:
    with pytest.raises(BenchmarkError, match=r"rounds \[1\]"):
        ratio_figures([*TWO_ROUNDS[:3], replace(TWO_ROUNDS[3], tokens=299)], "ttt7")


@pytest.mark.parametrize("kept", [2, 3])
def test_a_ratio_needs_two_whole_rounds(kept: int) -> None:
    with pytest.raises(BenchmarkError, match="round"):
        ratio_figures(TWO_ROUNDS[:kept], "ttt7")


def test_the_order_is_swapped_each_round() -> None:
    assert [order(round_) for round_ in range(3)] == [
        ("ours", "speculators"),
        ("speculators", "ours"),
        ("ours", "speculators"),
    ]


def test_the_fastest_arrangement_counts_real_tokens() -> None:
    slow_but_full = replace(THEIRS, arrangement="packed512", seconds=3.0)
    assert fastest([slow_but_full, THEIRS]) == "single"
    with pytest.raises(BenchmarkError):
        fastest([])


def test_gradients_differ_by_their_largest_entry() -> None:
    mine = {"a": torch.tensor([1.0, 100.0]), "b": torch.tensor([2.0])}
    assert gradient_difference(mine, {"a": torch.tensor([2.0, 100.0]), "b": torch.tensor([2.0])}) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="'b'"):
        gradient_difference(mine, {"a": mine["a"]})


def test_the_quadratic_part_of_a_curve() -> None:
    assert quadratic({length: 7 + 5 * length + 3 * length**2 for length in (512, 1024, 2048)}) == pytest.approx(3)
    assert quadratic({length: 7 + 5 * length for length in (512, 1024, 2048)}) == pytest.approx(0)
    with pytest.raises(BenchmarkError):
        quadratic({512: 1, 1024: 2})


def test_every_curve_has_its_figures_and_its_line() -> None:
    peaks = [
        Peak(side, length, steps, length * length * steps)
        for side in ("ours", "speculators")
        for length in (512, 1024, 2048)
        for steps in (1, 7)
    ]
    figures = growth_figures(peaks)
    assert figures["peak_mib_ours_ttt7_2048"] == round(7 * 2048**2 / MIB, 2)
    assert figures["quadratic_bytes_speculators_ttt7"] == pytest.approx(7)
    picture = ElementTree.fromstring(draw(peaks))
    assert len(picture.findall("{*}polyline")) == 4
    assert len(picture.findall("{*}circle")) == len(peaks)
