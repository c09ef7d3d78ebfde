# SPDX-License-Identifier: Apache-2.0
import pytest
from pydantic import ValidationError

from aerie.draft_models.acceptance import AcceptanceCounts, AcceptanceError, pool
from aerie.draft_models.measure import acceptance_of
from aerie.draft_models.offline import Answer

# Ten steps of K = 4: two accepted nothing, three one token, one two, none three, four all.
COUNTS = AcceptanceCounts(histogram=(2, 3, 1, 0, 4), drafted=40)


def answer(tokens: int, counts: AcceptanceCounts | None) -> Answer:
    return Answer(tuple(range(tokens)), "", "stop", counts)


def test_length_counts_the_bonus_token_and_rate_does_not() -> None:
    assert (COUNTS.steps, COUNTS.accepted, COUNTS.draft_tokens) == (10, 21, 4)
    assert COUNTS.length == pytest.approx(1 + 21 / 10)
    assert COUNTS.rate == pytest.approx(21 / 40)


def test_shares_by_position_add_up_to_the_accepted_tokens_of_a_step() -> None:
    assert COUNTS.per_position == pytest.approx([0.8, 0.5, 0.4, 0.4])
    assert 1 + sum(COUNTS.per_position) == pytest.approx(COUNTS.length)


def test_pooling_weighs_steps_not_requests() -> None:
    short = AcceptanceCounts(histogram=(0, 0, 0, 0, 1), drafted=4)
    pooled = pool([COUNTS, short])
    assert pooled.length == pytest.approx(1 + 25 / 11)
    assert pooled.length != pytest.approx((COUNTS.length + short.length) / 2)
    assert pooled.drafted == 44


@pytest.mark.parametrize(
    ("histogram", "drafted"),
    [((1,), 0), ((0, 2), 1), ((1, 1), 3), ((-1, 2), 2)],
    ids=["no position", "accepted more than drafted", "drafted more than K a step", "negative"],
)
def test_counts_that_contradict_themselves_are_refused(histogram: tuple[int, ...], drafted: int) -> None:
    with pytest.raises(ValidationError):
        AcceptanceCounts(histogram=histogram, drafted=drafted)


def test_nothing_verified_has_no_length() -> None:
    nothing = AcceptanceCounts(histogram=(0, 0), drafted=0)
    for name in ("length", "rate", "per_position"):
        with pytest.raises(AcceptanceError):
            getattr(nothing, name)


def test_different_draft_lengths_and_nothing_cannot_be_pooled() -> None:
    with pytest.raises(AcceptanceError):
        pool([COUNTS, AcceptanceCounts(histogram=(1, 1), drafted=2)])
    with pytest.raises(AcceptanceError):
        pool([])


def test_requests_must_add_up_to_what_the_engine_counted() -> None:
    COUNTS.check_totals({"steps": 10, "drafted": 40, "accepted": 21})
    with pytest.raises(AcceptanceError, match="the engine counted"):
        COUNTS.check_totals({"steps": 11, "drafted": 44, "accepted": 21})


@pytest.mark.parametrize("generated", [32, 31, 28])
def test_steps_may_overshoot_the_end_of_an_answer_by_k(generated: int) -> None:
    COUNTS.check_tokens(generated, requests=1)


@pytest.mark.parametrize("generated", [33, 27])
def test_steps_must_explain_the_tokens(generated: int) -> None:
    with pytest.raises(AcceptanceError):
        COUNTS.check_tokens(generated, requests=1)


def test_one_token_answers_have_no_step_and_are_left_out() -> None:
    empty = AcceptanceCounts(histogram=(0, 0, 0, 0, 0), drafted=0)
    acceptance = acceptance_of([answer(32, COUNTS), answer(1, empty), answer(1, None)])
    assert acceptance.pooled == COUNTS
    figures = acceptance.figures()
    assert figures["acceptance_length"] == pytest.approx(3.1)
    assert figures["acceptance_position_2"] == pytest.approx(0.5)
    assert acceptance.raw()["requests"] == 1
