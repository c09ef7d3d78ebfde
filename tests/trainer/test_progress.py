# SPDX-License-Identifier: Apache-2.0
"""What a log that is no terminal is told of a long stage."""

import io
import threading

from aerie.progress import Bar
from aerie.trainer.draft.answer import counting
from aerie.trainer.draft.child import new_counter


class Log(io.StringIO):
    """Text that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = threading.Semaphore(0)

    def write(self, text: str) -> int:
        written = super().write(text)
        if text.endswith("\n"):
            self.lines.release()
        return written


def test_a_line_tells_stage_share_rate_and_time_left() -> None:
    bar = Bar("answers", 4096, "prompts", done=96)
    bar.update(1096, "loss 2.0")
    assert bar.line(500.0) == "answers: 1,096 of 4,096 prompts (27%), 2 prompts/s, 25 min left, loss 2.0"


def test_without_progress_a_line_says_for_how_long() -> None:
    assert Bar("capture", 10, "tokens", done=4).line(180.0) == "capture: 4 of 10 tokens (40%), 3 min so far"


def test_lines_come_while_the_stage_is_busy() -> None:
    """The count is another process's; the first line stands there before any work, the last one after it."""
    log, counter = Log(), new_counter(2)
    with Bar("answers", 6, "answers", done=2, count=lambda: counter.value, stream=log, line_seconds=0.01):
        assert log.lines.acquire(timeout=30)
        counter.value = 5
        for _ in range(2):
            assert log.lines.acquire(timeout=30)
        counter.value = 6
    lines = log.getvalue().splitlines()
    assert lines[0] == "answers: 2 of 6 answers"
    assert lines[-1].startswith("answers: 6 of 6 answers (100%)")


def test_a_hidden_bar_says_nothing() -> None:
    log = Log()
    with Bar("training", 6, "updates", stream=log, hidden=True) as bar:
        bar.say("validation")
    assert log.getvalue() == ""


def test_what_vllm_finishes_is_counted_and_what_it_is_given_is_not() -> None:
    counter = new_counter()
    for name in ("Adding requests", "Processed prompts"):
        shown = counting(counter)(total=3, desc=name, dynamic_ncols=True, postfix="")
        shown.update(2)
        shown.close()
    assert counter.value == 2
