# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aerie.artefacts import sha256_file
from aerie.server import doctor
from aerie.server.doctor import CARD, Finding, changed_files, show

MakeCheckpoint = Callable[..., Path]
OK = Finding("vllm", "ok", "0.32.0")
OFF = Finding("CUDA graphs", "off", "there is no GPU")
MISSING = Finding("demo", "missing", "not there", "run `make demo`")


@pytest.mark.parametrize(("findings", "status"), [([OK], 0), ([OK, OFF], 0), ([OK, OFF, MISSING], 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_only_what_is_missing_fails(
    capsys: pytest.CaptureFixture[str], findings: list[Finding], status: int, as_json: bool
) -> None:
    assert show(findings, as_json=as_json) == status
    printed = capsys.readouterr().out
    assert all(finding.text in printed and finding.fix in printed for finding in findings)
    if as_json:
        assert json.loads(printed)["ok"] is (status == 0)


def test_files_are_held_against_the_card(tmp_path: Path) -> None:
    (tmp_path / "same").write_text("same")
    (tmp_path / "changed").write_text("before")
    files = {name: sha256_file(tmp_path / name) for name in ("same", "changed")}
    (tmp_path / "changed").write_text("after")

    assert changed_files(tmp_path, {"files": {**files, "gone": "0" * 64}}) == ["changed", "gone"]
    assert changed_files(tmp_path, {}) == [CARD]


def test_a_demo_that_is_not_there_is_missing_with_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AERIE_HOME", str(tmp_path))
    (finding,) = doctor.demo()
    assert finding.status == "missing"
    assert "lacks main, draft" in finding.text
    assert "make demo" in finding.fix


def test_a_list_of_plugins_without_ours_is_missing_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    (finding,) = doctor.plugin()
    assert (finding.status, finding.fix) == ("missing", "add aerie to VLLM_PLUGINS, or unset it")
    monkeypatch.setenv("VLLM_PLUGINS", "other,aerie")
    assert [finding.status for finding in doctor.plugin()] == ["ok"]


def test_a_version_we_did_not_read_is_missing_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", {"vllm": "0.99.0"}.get)
    vllm, torch, *_ = doctor.versions()
    assert (vllm.status, vllm.fix) == ("missing", "pip install vllm==0.33.0")
    assert (torch.topic, torch.status) == ("torch", "missing")


def test_an_examination_that_fails_is_a_finding() -> None:
    def broken() -> Iterator[Finding]:
        raise OSError("broken installation")

    (finding,) = doctor.safely(broken)
    assert (finding.status, finding.text) == ("missing", "OSError: broken installation")
