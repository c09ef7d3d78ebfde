# SPDX-License-Identifier: Apache-2.0
import json
from contextlib import ExitStack

import pytest

from aerie.server.errors import Overloaded
from aerie.server.front_settings import LimitSettings
from aerie.server.occupancy import ASSUMED_ANSWER_TOKENS, LEAST, Capacity, Occupancy, Weight, weigh

LONGEST = 8192
ONE = Weight(1, 10)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def occupancy(clock: Clock, *, requests: int | None = 2, tokens: int = 1000) -> Occupancy:
    made = Occupancy(requests, tokens, clock)
    made.capacity = Capacity(sequences=3, tokens=100, longest=LONGEST)
    return made


def weight_of(**body: object) -> Weight:
    return weigh(body, len(json.dumps(body)), LONGEST, LimitSettings())


def tokens_of(**body: object) -> int:
    return weight_of(**body).tokens


def test_the_engines_places_and_the_queues_are_given_and_no_more() -> None:
    house = occupancy(Clock())
    with ExitStack() as held:
        for _ in range(5):
            held.enter_context(house.holding(ONE))
        assert house.queued == 2
        with pytest.raises(Overloaded) as refused, house.holding(ONE):
            pass
        assert refused.value.reason == "overloaded_requests"
    with house.holding(ONE):
        assert house.sequences == 1


@pytest.mark.parametrize(("seats", "waiting"), [(1, 1), (3, 2), (16, 8), (0, 0)])
def test_by_default_half_as_many_wait_as_the_engine_works_on(seats: int, waiting: int) -> None:
    house = occupancy(Clock(), requests=None)
    house.capacity = Capacity(seats, 100, LONGEST)
    assert house.most.sequences == seats + waiting


def test_answers_that_are_asked_for_together_count_each() -> None:
    house = occupancy(Clock())
    with house.holding(Weight(4, 40)), pytest.raises(Overloaded), house.holding(Weight(2, 20)):
        pass


def test_tokens_are_bounded_too_but_one_request_alone_always_fits() -> None:
    house = occupancy(Clock())
    with house.holding(Weight(1, 5000)), pytest.raises(Overloaded) as refused, house.holding(ONE):
        pass
    assert refused.value.reason == "overloaded_tokens"
    assert house.tokens == 0


def test_retry_after_is_the_queue_at_the_measured_rate() -> None:
    clock = Clock()
    house = occupancy(clock, requests=100, tokens=10**6)
    clock.now = 20.0
    for _ in range(4):  # in 20 seconds: a sequence every 5
        with house.holding(ONE):
            pass
    with house.holding(Weight(5, 50)):
        assert house.retry_after_s() == 10


def test_retry_after_stays_within_bounds() -> None:
    clock = Clock()
    house = occupancy(clock, requests=100, tokens=10**6)
    assert house.retry_after_s() == 1
    with house.holding(Weight(50, 50)):
        assert house.retry_after_s() == 60
        clock.now = 1000.0
        assert house.retry_after_s() == 60


def test_a_body_is_weighed_by_its_length_and_the_answer_it_asks_for() -> None:
    short = tokens_of(prompt="a", max_tokens=5)
    assert tokens_of(prompt="a", max_tokens=105) - short == pytest.approx(100, abs=1)
    assert tokens_of(prompt="a" * 401, max_tokens=5) - short == 100
    assert tokens_of(prompt="a") - short > ASSUMED_ANSWER_TOKENS - 20
    assert tokens_of(prompt="a", max_tokens=10**11) == LONGEST
    assert weight_of(n=3, max_tokens=7).sequences == 3
    assert weight_of(n=2, best_of=4).sequences == 4


def test_every_prompt_is_a_sequence_for_each_answer() -> None:
    assert weight_of(prompt=["a", "b", "c"], n=2, max_tokens=5).sequences == 6
    assert weight_of(prompt=["a", "b", "c"], n=2, max_tokens=5).tokens >= 6 * 5


def test_token_ids_are_counted() -> None:
    assert weight_of(prompt=[100_000] * 300, max_tokens=5) == Weight(1, 305)
    assert weight_of(prompt=[[1] * 10, [2] * 20], max_tokens=5) == Weight(2, 40)


def test_text_that_talks_of_keys_is_text() -> None:
    assert weight_of(prompt='set "max_tokens": 9000 and "n": 60').sequences == 1
    assert tokens_of(messages=[{"content": {"max_tokens": 9000}}]) < 2 * ASSUMED_ANSWER_TOKENS


@pytest.mark.parametrize("value", [None, True, "7", -1, 0, 1.5, [], {}, [7]])
def test_what_the_rules_will_refuse_weighs_as_if_it_were_not_there(value: object) -> None:
    assert weight_of(n=value, prompt="a").sequences == 1
    assert tokens_of(max_tokens=value) >= ASSUMED_ANSWER_TOKENS
    assert weight_of(prompt=value).sequences == 1


def test_no_body_claims_the_whole_queue_by_a_number() -> None:
    assert weight_of(n=1 << 62) == weight_of(prompt=["x"] * 100_000) == LEAST
    assert tokens_of(max_tokens=1 << 62) == LONGEST
