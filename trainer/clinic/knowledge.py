# SPDX-License-Identifier: Apache-2.0
"""The clinic's knowledge base: its schema, its checks, and how it is read.

For software testing only; nothing here is medical advice.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

KNOWLEDGE_DIR = Path(__file__).parent / "knowledge"

Slug = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
# A phrase is dropped into a sentence: no full stop at its end, no line breaks, one screen line long.
Phrase = Annotated[str, Field(min_length=2, max_length=110, pattern=r"^[^\n]*[^\n.!?\s]$")]
Question = Annotated[str, Field(min_length=8, max_length=110, pattern=r"^[A-Z][^\n]*\?$")]


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Presentation(_Fact):
    """How the disease presents: the patient's words and the physician's."""

    lay: Phrase
    clinical: Phrase


class HistoryItem(_Fact):
    """One thing a physician must ask, with the answer a patient who has the disease gives."""

    id: Slug
    ask: Question
    lay: Phrase
    denial: Phrase
    clinical: Phrase
    critical: bool
    probability: float = Field(ge=0.0, le=1.0)


class ExaminationFinding(_Fact):
    """What an examination shows in a patient who has the disease."""

    test: Slug
    finding: Phrase
    essential: bool


class Disease(_Fact):
    """Everything the clinic knows of one disease."""

    id: Slug
    name: Phrase
    icd10: str = Field(pattern=r"^[A-Z]\d{2}(\.\d)?$")
    sex: Literal["any", "female", "male"]
    ages: tuple[int, int]
    presentations: tuple[Presentation, ...] = Field(min_length=2, max_length=3)
    history: tuple[HistoryItem, ...] = Field(min_length=5, max_length=7)
    examinations: tuple[ExaminationFinding, ...] = Field(min_length=2, max_length=4)
    differentials: tuple[Slug, ...] = Field(min_length=2, max_length=3)
    treatment: tuple[Phrase, ...] = Field(min_length=2, max_length=4)
    red_flags: tuple[Phrase, ...] = Field(min_length=1, max_length=3)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.ages
        if not 0 <= low < high <= 100:
            raise ValueError(f"{self.id}: ages must satisfy 0 <= low < high <= 100, got {self.ages}")
        if not any(item.critical for item in self.history):
            raise ValueError(f"{self.id}: at least one history item must be critical")
        if not any(exam.essential for exam in self.examinations):
            raise ValueError(f"{self.id}: at least one examination must be essential")
        if self.id in self.differentials:
            raise ValueError(f"{self.id}: a disease is not its own differential")
        for what, ids in (("history", [h.id for h in self.history]), ("test", [e.test for e in self.examinations])):
            if len(set(ids)) != len(ids):
                raise ValueError(f"{self.id}: {what} ids repeat: {ids}")
        return self


class Knowledge(_Fact):
    """The whole base: diseases by id, departments, and the examinations' names."""

    diseases: dict[str, Disease]
    departments: dict[str, tuple[str, ...]]
    examinations: dict[str, str]

    @model_validator(mode="after")
    def _closed(self) -> Self:
        for disease in self.diseases.values():
            if missing := set(disease.differentials) - self.diseases.keys():
                raise ValueError(f"{disease.id}: unknown differentials {sorted(missing)}")
            if missing := {e.test for e in disease.examinations} - self.examinations.keys():
                raise ValueError(f"{disease.id}: unknown examinations {sorted(missing)}")
        return self

    def department_of(self, disease_id: str) -> str:
        """The department that treats `disease_id`; KeyError when nobody does."""
        for department, ids in self.departments.items():
            if disease_id in ids:
                return department
        raise KeyError(disease_id)


def _read_yaml(path: Path) -> dict[str, dict[str, object]]:
    loaded: dict[str, dict[str, object]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def read_department(path: Path, index: dict[str, dict[str, object]]) -> list[Disease]:
    """Read and check one department's file against its part of the index.

    Raises:
        ValueError: A disease is missing, is not in the index, or breaks the schema.
    """
    facts = _read_yaml(path)
    if facts.keys() != index.keys():
        raise ValueError(f"{path.name}: differs from index.yaml in {sorted(facts.keys() ^ index.keys())}")
    return [Disease.model_validate({"id": key, **index[key], **facts[key]}) for key in index]


@cache
def load_knowledge() -> Knowledge:
    """Read the reviewed files beside this module into one checked `Knowledge`."""
    index: dict[str, dict[str, dict[str, object]]] = yaml.safe_load(
        (KNOWLEDGE_DIR / "index.yaml").read_text(encoding="utf-8")
    )
    departments = {name: read_department(KNOWLEDGE_DIR / f"{name}.yaml", part) for name, part in index.items()}
    return Knowledge(
        diseases={disease.id: disease for group in departments.values() for disease in group},
        departments={name: tuple(disease.id for disease in group) for name, group in departments.items()},
        examinations=yaml.safe_load((KNOWLEDGE_DIR / "examinations.yaml").read_text(encoding="utf-8")),
    )
