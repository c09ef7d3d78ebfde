# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aerie.artefacts import REPOSITORY
from aerie.server.reference import markdown, rewrite, rows
from aerie.server.settings import fields

AERIE = (sys.executable, "-P", "-m", "aerie")
PAGE = REPOSITORY / "docs" / "operations.md"


def test_the_reference_has_every_option() -> None:
    assert [row.name for row in rows()] == list(fields())
    assert all(row.usage in markdown() and row.variable in markdown() for row in rows())


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert rewrite(page) == page, f"run python -m aerie.server.reference {PAGE.relative_to(REPOSITORY)}"


@pytest.mark.parametrize("columns", ["60", "80", "160"])
def test_help_shows_every_option_whole_with_its_variable_and_default(tmp_path: Path, columns: str) -> None:
    environ = {**os.environ, "COLUMNS": columns, "NO_COLOR": "1"}
    page = subprocess.run(
        [*AERIE, "serve", "--help"], capture_output=True, text=True, check=True, cwd=tmp_path, env=environ
    ).stdout
    words = " ".join(page.split())
    for row in rows():
        assert row.usage in words
        assert f"{row.variable}, default " in words
    assert "…" not in page
