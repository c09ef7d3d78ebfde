# SPDX-License-Identifier: Apache-2.0
"""One thing has one name in all commands."""

import pytest

from aerie.cli import main


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["tune", "--most", "3"], "--most is now --draft-tokens"),
        (["bench", "serving", "--out", "x.json", "--scenario", "a=b"], "--scenario is now --prompts"),
        (["draft", "verify", "x", "--target", "y"], "--target is now --model"),
    ],
)
def test_an_earlier_name_is_told_the_present_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], line: str
) -> None:
    monkeypatch.setattr("sys.argv", ["aerie", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (2, f"aerie: error: {line}\n")
