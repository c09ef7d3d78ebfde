# SPDX-License-Identifier: Apache-2.0
"""Patients: who they are, what they have, and which split they belong to."""

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

from aerie.trainer.clinic.knowledge import Disease, Knowledge, load_knowledge

Split = Literal["train", "validation", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "validation", "held_out")

HELD_OUT_PER_SPLIT = 6
PATIENT_BUCKETS = 20
BACKGROUNDS = (
    "a teacher", "a farmer", "a nurse", "a bus driver", "a cook", "a student", "an office clerk", "a builder",
    "a shop assistant", "a gardener", "an engineer", "a musician",
)  # fmt: skip
# Said by the patient, of no use to the physician: the paper's "irrelevant findings".
IRRELEVANT = (
    "my left knee clicks when I kneel", "I moved house last month", "my cat has been unwell too",
    "I sleep on a new mattress", "I changed my washing powder in spring", "my neighbour gave me vitamin tablets",
    "I had a wisdom tooth out years ago", "I broke my wrist as a child", "I have been eating more fruit lately",
    "I got new glasses this year",
)  # fmt: skip


@dataclass(frozen=True)
class Patient:
    """One patient. `present` holds the ids of the disease's history items that are true of them."""

    disease: Disease
    age: int
    sex: Literal["female", "male"]
    background: str
    presentation: int
    present: frozenset[str]
    irrelevant: str

    @property
    def person(self) -> str:
        """How a letter calls them: `a 63-year-old man`, `a 4-year-old girl`."""
        child, adult = ("girl", "woman") if self.sex == "female" else ("boy", "man")
        article = "an" if self.age in (8, 11, 18) or 80 <= self.age <= 89 else "a"
        return f"{article} {self.age}-year-old {adult if self.age >= 18 else child}"

    @property
    def key(self) -> str:
        """Identity of the patient: equal keys are the same patient."""
        return "|".join(
            (self.disease.id, str(self.age), self.sex, self.background, str(self.presentation), *sorted(self.present))
        )

    @property
    def split(self) -> Split:
        """The split this patient belongs to, from their identity alone, so that no patient is in two splits."""
        bucket = int(hashlib.sha256(self.key.encode()).hexdigest(), 16) % PATIENT_BUCKETS
        return {0: "validation", 1: "held_out"}.get(bucket, "train")  # type: ignore[return-value]  # literals, not str


def disease_split(knowledge: Knowledge) -> dict[str, Split]:
    """The split of every disease: six for validation and six held out, chosen by the hash of their ids."""
    ranked = sorted(knowledge.diseases, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    apart: tuple[Split, ...] = ("validation", "held_out")
    names = [name for name in apart for _ in range(HELD_OUT_PER_SPLIT)]
    split: dict[str, Split] = dict.fromkeys(ranked, "train")
    split.update(zip(ranked, names, strict=False))
    return split


def diseases_of(split: Split) -> list[Disease]:
    """The diseases of one split, in the knowledge base's order."""
    knowledge = load_knowledge()
    belongs = disease_split(knowledge)
    return [disease for disease in knowledge.diseases.values() if belongs[disease.id] == split]


def draw_patient(rng: random.Random, disease: Disease) -> Patient:
    """Draw a patient who has `disease`; every critical item of a history is true unless its probability says no."""
    sex: Literal["female", "male"] = rng.choice(("female", "male")) if disease.sex == "any" else disease.sex
    age = rng.randint(*disease.ages)
    present = frozenset(item.id for item in disease.history if rng.random() < item.probability)
    background = rng.choice(BACKGROUNDS)
    presentation = rng.randrange(len(disease.presentations))
    return Patient(disease, age, sex, background, presentation, present, rng.choice(IRRELEVANT))


def sample_patient(rng: random.Random, split: Split, *, unseen_disease: bool = False) -> Patient:
    """Draw a patient of a split.

    Args:
        rng: Source of all randomness.
        split: Which patients; their identities are disjoint between splits.
        unseen_disease: Give them a disease of that split, which no training document is about, instead of one of
            the diseases that training covers.
    """
    diseases = diseases_of(split if unseen_disease else "train")
    while True:
        patient = draw_patient(rng, rng.choice(diseases))
        if patient.split == split:
            return patient
