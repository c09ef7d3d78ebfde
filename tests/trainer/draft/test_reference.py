# SPDX-License-Identifier: Apache-2.0
from aerie.artefacts import REPOSITORY
from aerie.trainer.draft.recipe import Answers, Capture, DraftRecipe, Head, LowRank, OnPolicy, Served, Training
from aerie.trainer.draft.reference import rewrite, schemas

PAGE = REPOSITORY / "docs" / "draft-training.md"


def test_every_group_of_settings_is_found() -> None:
    found = {schema for _, schema in schemas()}
    assert {DraftRecipe, Answers, Capture, Head, LowRank, OnPolicy, Served, Training} <= found
    assert dict(schemas())["training.lora"] is LowRank


def test_every_setting_says_what_it_means() -> None:
    silent = [
        f"{name}.{key}"
        for name, schema in schemas()
        for key, field in schema.model_fields.items()
        if not field.description and key != "source"
    ]
    assert silent == []


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    command = f"python -m aerie.trainer.draft.reference {PAGE.relative_to(REPOSITORY)}"
    assert rewrite(page) == page, f"run {command}"
