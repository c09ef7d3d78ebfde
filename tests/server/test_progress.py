# SPDX-License-Identifier: Apache-2.0
import pytest

from aerie.server.progress import WINDOW_SECONDS, Progress, Step, Window


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_idle_engine_owes_nothing(clock: Clock) -> None:
    progress = Progress(clock)
    clock.now += 1000
    assert progress.owed_seconds == 0
    assert progress.idle_seconds == 1000


def test_a_request_is_owed_a_step_and_then_another(clock: Clock) -> None:
    progress = Progress(clock)
    progress.began()
    clock.now += 7
    assert progress.owed_seconds == 7
    progress.stepped(Step())
    assert progress.owed_seconds == 0
    clock.now += 3
    assert progress.owed_seconds == 3


def test_more_requests_do_not_make_the_debt_younger(clock: Clock) -> None:
    progress = Progress(clock)
    progress.began()
    clock.now += 7
    progress.began()
    assert progress.owed_seconds == 7


def test_an_answered_request_leaves_no_debt(clock: Clock) -> None:
    progress = Progress(clock)
    progress.began()
    progress.stepped(Step())
    progress.ended(answered=True)
    clock.now += 1000
    assert progress.owed_seconds == 0


def test_a_request_given_up_leaves_its_debt_until_a_step(clock: Clock) -> None:
    progress = Progress(clock)
    progress.began()
    clock.now += 5
    progress.ended(answered=False)
    clock.now += 5
    assert progress.owed_seconds == 10
    progress.stepped(Step())
    assert progress.owed_seconds == 0


def test_the_window_forgets(clock: Clock) -> None:
    window = Window(clock)
    for accepted in (1, 2):
        window.stepped(Step(drafts=1, drafted=(1, 1), accepted=(1, accepted - 1)))
        clock.now += WINDOW_SECONDS / 2 + 1
    assert (window.total().drafts, window.total().accepted) == (1, 2)
    clock.now += WINDOW_SECONDS
    window.stepped(Step())
    assert window.total().drafted == 0
