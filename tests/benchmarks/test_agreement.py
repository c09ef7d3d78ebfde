# SPDX-License-Identifier: Apache-2.0
"""Turn agreement: what counts as a turn, and as the same one."""

import pytest

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.quality.agreement import figures, turn
from aerie.draft_models.offline import Answer

END = "<|im_end|>"
ADVICE = "<think>\nfever\n</think>\n\nAdvice: drink water."
INQUIRY = "<think>\nfever\n</think>\n\nI note fever. Do you cough?"


def answer(text: str, token: int = 0, finish_reason: str = "stop") -> Answer:
    return Answer((token,), text + END, finish_reason, None)


def test_a_turn_is_its_kind_and_its_answer_without_reasoning() -> None:
    assert turn(answer(ADVICE), END) == ("advice", "Advice: drink water.")


@pytest.mark.parametrize(
    "one",
    [answer("Advice: drink water."), answer(ADVICE, finish_reason="length"), answer("<think>\na\n</think>\n\nHm")],
)
def test_what_is_cut_off_or_not_well_formed_is_no_turn(one: Answer) -> None:
    assert turn(one, END) is None


def test_kinds_answers_and_tokens_are_counted_over_the_references_turns() -> None:
    same = answer(ADVICE)
    thought = answer(ADVICE.replace("fever", "cold"), token=1)
    said = answer(ADVICE.replace("water", "tea"), token=1)
    pairs = [(same, same), (same, thought), (same, said), (same, answer(INQUIRY, token=1)), (answer("Hm"), same)]
    assert figures(pairs, END) == {
        "turn_agreement": 0.75,
        "turn_agreement_answer": 0.5,
        "turn_agreement_tokens": 0.25,
        "turns_parsed": 4,
    }


def test_a_reference_that_says_nothing_well_formed_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="--reference"):
        figures([(answer("Hm"), answer(ADVICE))], END)
