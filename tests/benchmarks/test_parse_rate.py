# SPDX-License-Identifier: Apache-2.0
import pytest

from aerie.benchmarks.quality.parse_rate import Reading, rate, raw, read

END = "<|im_end|>"
INQUIRY = "<think>\n\n</think>\n\nI note fever. Do you cough?"


@pytest.mark.parametrize("text", [INQUIRY + END, INQUIRY])
def test_a_whole_answer_reads_as_its_kind(text: str) -> None:
    assert read("inquiry", text, END, "stop").right


@pytest.mark.parametrize(
    ("text", "finish_reason"),
    [(INQUIRY, "length"), ("I note fever. Do you cough?", "stop"), ("<think>\nhm", "stop"), ("", "stop")],
    ids=["cut off", "no reasoning", "reasoning not closed", "empty"],
)
def test_an_answer_that_is_not_well_formed_reads_as_nothing(text: str, finish_reason: str) -> None:
    assert read("inquiry", text, END, finish_reason).found is None


def test_rate_counts_the_kind_that_is_due() -> None:
    readings = [Reading("inquiry", "inquiry", ""), Reading("advice", "inquiry", "x"), Reading("advice", None, "y")]
    assert rate(readings) == pytest.approx(1 / 3)
    told = raw(readings)
    assert told["by_kind"] == {"advice": {"answers": 2, "right": 0}, "inquiry": {"answers": 1, "right": 1}}
    assert told["failures"] == [
        {"expected": "advice", "found": "inquiry", "text": "x"},
        {"expected": "advice", "found": None, "text": "y"},
    ]
