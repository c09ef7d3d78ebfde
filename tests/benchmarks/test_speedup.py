# SPDX-License-Identifier: Apache-2.0
import json
import os
from pathlib import Path
from typing import Any

import pytest

from aerie.benchmarks.prompts import Prompt, PromptsError, held_out
from aerie.benchmarks.serving import cpu_time
from aerie.benchmarks.serving.load import (
    TIMES,
    LoadError,
    LoadOptions,
    LoadReport,
    bench_arguments,
    write_dataset,
)
from aerie.benchmarks.serving.rounds import Round
from aerie.benchmarks.serving.speedup import TextsDifferError, check_same_texts, speedup_figures

TEXTS = ("yes", "no")


def saved(**changes: object) -> dict[str, Any]:
    """What the load generator writes, cut down to what is read, and one key that is not."""
    found = {
        "duration": 2.0,
        "completed": 2,
        "failed": 0,
        "total_input_tokens": 20,
        "total_output_tokens": 100,
        "output_throughput": 50.0,
        "request_throughput": 1.0,
        **{f"{kind}_{time}_ms": 1.0 for time in TIMES.split(",") for kind in ("mean", "median", "p90", "p99")},
        "spec_decode_num_drafts": 30,
        "generated_texts": list(TEXTS),
        "errors": ["", ""],
        "itls": [[0.1]],
    }
    return {**found, **changes}


def one_round(server: str, index: int, seconds: float, texts: tuple[str, ...] = TEXTS, concurrency: int = 1) -> Round:
    changes = {"duration": seconds, "output_throughput": 100 / seconds, "generated_texts": list(texts)}
    report = LoadReport.read(saved(**changes), client_cpu_s=1.0)
    return Round(
        server=server, index=index, concurrency=concurrency, report=report,
        cores_server=1.0, cores_waiting=0.0, cores_others=0.0,
    )  # fmt: skip


def test_speedup_is_the_ratio_of_pooled_throughputs_with_the_spread_of_rounds() -> None:
    seconds = {"draft": (1.0, 1.0, 2.0), "no_draft": (2.0, 1.5, 3.0)}
    rounds = [one_round(name, index, value) for name, values in seconds.items() for index, value in enumerate(values)]
    figures = speedup_figures(rounds)
    assert figures["speedup_c1"] == pytest.approx(6.5 / 4, abs=1e-4)
    assert figures["speedup_c1_min"] == 1.5
    assert figures["speedup_c1_std"] == pytest.approx(0.2887, abs=1e-4)
    assert figures["output_tokens_per_s_no_draft_c1"] == pytest.approx(300 / 6.5, abs=1e-3)


def test_rounds_are_paired_whatever_their_order_and_levels_kept_apart() -> None:
    rounds = [
        one_round(name, index, 1.0 if name == "draft" else 1.0 + concurrency, concurrency=concurrency)
        for concurrency in (4, 1)
        for index in (1, 0)
        for name in ("no_draft", "draft")
    ]
    figures = speedup_figures(rounds)
    assert (figures["speedup_c1"], figures["speedup_c4"]) == (2.0, 5.0)


def test_different_texts_at_concurrency_1_are_an_error_above_it_a_share() -> None:
    same = [one_round("draft", 0, 1.0), one_round("no_draft", 0, 2.0)]
    assert check_same_texts(same) == {"c1": 1.0}
    with pytest.raises(TextsDifferError, match="'maybe'"):
        check_same_texts([one_round("draft", 0, 1.0, ("maybe", "no")), one_round("no_draft", 0, 2.0)])
    batched = [one_round("draft", 0, 1.0, ("maybe", "no"), 4), one_round("no_draft", 0, 2.0, TEXTS, 4)]
    assert check_same_texts(batched) == {"c4": 0.5}


def test_report_of_a_server_without_a_draft_has_no_speculation() -> None:
    without = {name: value for name, value in saved().items() if not name.startswith("spec_decode")}
    assert LoadReport.read(without, 1.0).spec_decode_num_drafts is None
    assert LoadReport.read(saved(), 1.0).spec_decode_num_drafts == 30


@pytest.mark.parametrize("changes", [{"failed": 1}, {"errors": ["", "refused"]}, {"duration": None}])
def test_a_failed_request_or_a_missing_value_spoils_the_run(changes: dict[str, object]) -> None:
    with pytest.raises(LoadError):
        LoadReport.read(saved(**changes), 1.0)


def test_load_is_greedy_to_the_natural_end_and_never_oversampled(tmp_path: Path) -> None:
    options = LoadOptions(tokenizer=tmp_path, max_tokens=256, concurrency=2)
    arguments = bench_arguments("http://x", tmp_path / "prompts.json", tmp_path / "result.json", 8, options)
    values = dict(zip(arguments[::2], arguments[1::2], strict=False))
    assert (values["--temperature"], values["--max-concurrency"], values["--num-prompts"]) == ("0.0", "2", "8")
    assert "--no-oversample" in arguments
    assert "--ignore-eos" not in arguments


def test_dataset_holds_the_rendered_prompts(tmp_path: Path) -> None:
    write_dataset(tmp_path / "prompts.json", [Prompt("<ask> x", (1, 2))])
    (entry,) = json.loads((tmp_path / "prompts.json").read_text())
    assert entry["conversations"][0]["value"] == "<ask> x"
    assert len(entry["conversations"]) == 2


def test_prompts_of_a_file_are_taken_in_order_and_must_suffice(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    chats = [[{"role": "user", "content": str(index)}] for index in range(3)]
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    assert held_out(2, seed=0, path=path) == chats[:2]
    with pytest.raises(PromptsError, match="has 3 prompts, 4 are needed"):
        held_out(4, seed=0, path=path)
    path.write_text('{"prompt": "x"}')
    with pytest.raises(PromptsError):
        held_out(1, seed=0, path=path)


def test_clinic_prompts_are_held_out_and_end_with_the_user() -> None:
    chats = held_out(4, seed=1)
    assert [chat[-1]["role"] for chat in chats] == ["user"] * 4
    assert held_out(4, seed=1) == chats


def test_cpu_time_of_a_session_adds_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    # pid (comm) state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt utime stime ...
    for pid, session, utime, stime in ((7, 7, 100, 50), (8, 7, 30, 20), (9, 9, 999, 999)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) b) S 1 7 {session} 0 -1 0 1 2 3 4 {utime} {stime} 0 0")
    (tmp_path / "stat").write_text("cpu  100 20 30 4000 50 6 7 0 0 0\ncpu0 1 2 3")
    assert cpu_time.session_seconds(7, tmp_path) == 2.0
    assert cpu_time.busy_seconds(tmp_path) == pytest.approx(1.63)
