# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import yaml
from pydantic import ValidationError

from aerie.trainer.clinic.knowledge import KNOWLEDGE_DIR, Disease, load_knowledge, read_department

CARDIOLOGY = KNOWLEDGE_DIR / "cardiology.yaml"


def _infarction() -> dict[str, object]:
    facts = yaml.safe_load(CARDIOLOGY.read_text(encoding="utf-8"))["acute-myocardial-infarction"]
    return {"id": "acute-myocardial-infarction", "name": "acute myocardial infarction", "icd10": "I21.9", **facts}


def test_the_base_covers_twelve_departments_and_eighty_diseases() -> None:
    knowledge = load_knowledge()
    assert len(knowledge.departments) == 12
    assert len(knowledge.diseases) >= 80
    assert len(knowledge.examinations) == 38
    assert len({disease.icd10 for disease in knowledge.diseases.values()}) == len(knowledge.diseases)


def test_every_disease_has_its_department() -> None:
    knowledge = load_knowledge()
    assert knowledge.department_of("melanoma") == "dermatology"
    assert {knowledge.department_of(name) for name in knowledge.diseases} == set(knowledge.departments)
    with pytest.raises(KeyError):
        knowledge.department_of("dragon-pox")


def test_every_examination_is_used() -> None:
    knowledge = load_knowledge()
    used = {exam.test for disease in knowledge.diseases.values() for exam in disease.examinations}
    assert used == set(knowledge.examinations)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("icd10", "heart", "icd10"),
        ("ages", [50, 20], "ages"),
        ("differentials", ["acute-myocardial-infarction", "gout"], "its own differential"),
        ("treatment", ["rest.", "water"], "treatment"),
        ("surgeon", "Ann", "surgeon"),
    ],
)
def test_a_bad_fact_is_refused_and_named(field: str, value: object, complaint: str) -> None:
    facts = copy.deepcopy(_infarction())
    facts[field] = value
    with pytest.raises(ValidationError, match=complaint):
        Disease.model_validate(facts)


def test_a_department_must_match_its_index() -> None:
    with pytest.raises(ValueError, match=r"cardiology.yaml: differs from index.yaml"):
        read_department(CARDIOLOGY, {"gout": {"name": "gout", "icd10": "M10.9"}})
