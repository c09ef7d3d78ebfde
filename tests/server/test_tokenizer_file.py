# SPDX-License-Identifier: Apache-2.0
"""A tokenizer that cannot be read is refused before the engine starts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aerie.server import checks
from aerie.server.errors import BadOption
from aerie.server.plan import make_plan
from aerie.server.settings import ServeSettings

MakeCheckpoint = Callable[..., Path]
TOKENIZER: dict[str, object] = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (json.dumps(TOKENIZER)[:-9], "Exception: EOF while parsing"),
        ("", "Exception: EOF while parsing"),
        ("{}", "Exception: Model missing"),
        (json.dumps({"model": TOKENIZER["model"]}), "KeyError: 'added_tokens'"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Exception: expected value"),
    ],
)
def test_a_damaged_tokenizer_is_named(make_checkpoint: MakeCheckpoint, text: str, reason: str) -> None:
    path = make_checkpoint() / "tokenizer.json"
    path.write_text(json.dumps(TOKENIZER))
    checks.check(make_plan(ServeSettings(model=str(path.parent))))
    path.write_text(text)
    with pytest.raises(BadOption) as refused:
        checks.check(make_plan(ServeSettings(model=str(path.parent))))
    line = str(refused.value)
    assert line.startswith(f"--model: {path} is not a tokenizer ({reason}")
    assert line.endswith("; copy it again from where the checkpoint came from")
