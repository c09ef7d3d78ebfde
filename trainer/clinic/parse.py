# SPDX-License-Identifier: Apache-2.0
"""Read a free-running answer back: which kind of turn it is, and whether it is well formed."""

import re
from typing import Literal

AnswerKind = Literal["inquiry", "differential", "examinations", "diagnosis", "advice"]

_ICD10 = r"\([A-Z]\d{2}(?:\.\d)?\)"
_FORMS: tuple[tuple[AnswerKind, re.Pattern[str]], ...] = (
    ("differential", re.compile(rf"Differential diagnosis:(?:\n\d\. [^\n]+ {_ICD10})+")),
    ("examinations", re.compile(r"Please have these examinations:(?:\n- [^\n]+)+")),
    ("diagnosis", re.compile(rf"Diagnosis: [^\n]+ {_ICD10}\nTreatment: [^\n]+\nCome back at once if [^\n]+\.")),
    ("advice", re.compile(r"Advice: [^\n]+\.")),
    ("inquiry", re.compile(r"I note [^\n?]+\. [A-Z][^\n?]+\?")),
)
_REASONING = re.compile(r"<think>\n(?P<reasoning>.*?)\n</think>\n\n(?P<answer>.*)", re.DOTALL)


def split_reasoning(text: str) -> tuple[str, str] | None:
    """`(reasoning, answer)` of a raw generation, or None when its reasoning part is not closed."""
    found = _REASONING.fullmatch(text.strip())
    return (found["reasoning"].strip(), found["answer"]) if found else None


def parse_answer(answer: str) -> AnswerKind | None:
    """The kind of turn that `answer` (without reasoning) is, or None when it is none of them."""
    return next((kind for kind, form in _FORMS if form.fullmatch(answer.strip())), None)
