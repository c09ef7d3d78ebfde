# SPDX-License-Identifier: Apache-2.0
"""`aerie bench serving`: what is refused, in one line, before anything starts; and that results there are kept."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
from typer.testing import CliRunner

from aerie import artefacts
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.options import DEMO_DRAFT, DEMO_MODEL
from aerie.benchmarks.points import Record
from aerie.benchmarks.prompts import Prompt, PromptsError
from aerie.benchmarks.results_file import Provenance, ResultFile, ResultsError, Run
from aerie.benchmarks.serving import bench, chosen
from aerie.benchmarks.serving.bench import Command, earlier, run, write
from aerie.benchmarks.serving.chosen import Servers, check_memory, decimals, draft_beside, numbers, pool, scenario_files
from aerie.benchmarks.serving.serve_options import told, told_k
from aerie.benchmarks.serving.sweep import SweepOptions, Turn, measure_missing
from aerie.benchmarks.serving.variants import Variant, VariantError, connect
from aerie.cli import app
from aerie.server.errors import BadOption

URL = "http://127.0.0.1:1"


def servers(*variants: str, draft_tokens: tuple[int, ...] | None = None, draft: Path | None = None) -> list[Variant]:
    named = Servers(DEMO_MODEL, draft, draft_tokens, variants, "its-name", ("--kv-cache-memory=64MiB",))
    return named.all()


def test_without_options_the_demo_with_its_draft_is_compared_with_none() -> None:
    none, k4 = servers()
    assert (none.name, none.draft_tokens, k4.name, k4.draft_tokens) == ("none", 0, "k4", 4)
    assert none.arguments == ("--model", str(DEMO_MODEL), "--kv-cache-memory=64MiB", "--no-draft")
    assert k4.arguments[-4:] == ("--draft", str(DEMO_DRAFT), "--draft-tokens", "4")


def test_named_variants_are_beside_those_that_come_by_themselves_but_for_urls_alone() -> None:
    assert [one.name for one in servers(f"plain-k2=--draft {DEMO_DRAFT} --draft-tokens 2")] == [
        "none",
        "k4",
        "plain-k2",
    ]
    assert [one.name for one in servers(f"mine={URL}")] == ["mine"]
    assert [one.name for one in servers(f"mine={URL}", draft_tokens=(0,))] == ["none", "mine"]
    assert [one.name for one in servers(draft_tokens=(1, 7))] == ["none", "k1", "k7"]
    (mine,) = servers(f"mine={URL}/v1/")
    assert (mine.url, mine.served_model, mine.draft_tokens) == (URL, "its-name", None)
    *_, plain = servers(f"plain-k2=--draft={DEMO_DRAFT} --draft-tokens 2")
    assert plain.arguments[:3] == ("--model", str(DEMO_MODEL), "--kv-cache-memory=64MiB")
    assert plain.draft_tokens == 2
    *_, other = servers(f"other=--model {DEMO_DRAFT} --no-draft")
    assert told(other.arguments, "--model") == str(DEMO_DRAFT)


@pytest.mark.parametrize(
    ("arguments", "k"),
    [
        (["--no-draft"], 0),
        (["--draft", "none"], 0),
        (["--draft", "x", "--draft-tokens=3"], 3),
        (["--draft-tokens", "3", "--draft-tokens", "5"], 5),
        (["--speculation", "tuned.json"], None),
    ],
)
def test_k_is_read_from_the_options(arguments: list[str], k: int | None) -> None:
    assert told_k(arguments) == k


@pytest.mark.parametrize(
    ("variants", "problem"),
    [
        ((f"a={URL}", f"a={URL}2"), "--variant: a is named twice; give each its own name"),
        ((f"a-b={URL}", f"a_b={URL}2"), "a_b is named twice"),
        (("k4=--draft x",), "k4 is named twice; `none` and kN come by themselves"),
        (("a=there",), "neither http://HOST:PORT nor options"),
        ((URL,), "is not NAME=URL or NAME=OPTIONS"),
        (("a='--draft",), "No closing quotation"),
        (("a=--draft absent",), "--variant: a: --draft: absent is not a folder"),
        (("a=--draft-tokens many",), "a: --draft-tokens: 'many' is not accepted"),
        (("a=--drafts x",), "a: --drafts: no such option; did you mean --draft?"),
        (("a=--port 1",), "a: --port: it is given by the benchmark"),
        (("a=--draft",), "a: --draft: it has no value"),
    ],
)
def test_variants_that_cannot_be_meant_are_refused(variants: tuple[str, ...], problem: str) -> None:
    with pytest.raises(BadOption, match=problem):
        servers(*variants)


def test_a_draft_must_be_named_for_a_model_that_has_none(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="--draft: no draft is named"):
        Servers(tmp_path, None, None, (), None, ()).all()
    with pytest.raises(BadOption, match="--draft: no draft is named"):
        Servers(tmp_path, None, (0, 2), (), None, ()).all()
    assert draft_beside(tmp_path, DEMO_DRAFT) == DEMO_DRAFT
    (tmp_path / "draft").mkdir()
    assert draft_beside(tmp_path, None) == tmp_path / "draft"


def test_a_model_without_a_draft_is_measured_without_and_beside_others(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    model = tmp_path
    assert [one.name for one in Servers(model, None, (0,), (), None, ()).all()] == ["none"]
    bare, ngram, elsewhere = Servers(model, None, None, ("ngram=--draft ngram", f"other={URL}"), None, ()).all()
    assert (bare.name, bare.draft_tokens, ngram.draft_tokens, elsewhere.url) == ("none", 0, None, URL)
    assert "--draft" not in bare.arguments


def test_numbers_are_listed_repeated_or_both() -> None:
    assert numbers("--concurrency", ["4,1", "2"], 1) == (1, 2, 4)
    for text in ("1,x", "0", "", "-1"):
        with pytest.raises(BadOption, match=r"--concurrency: .* is no whole number from 1"):
            numbers("--concurrency", [text], 1)
    assert decimals("--temperature", ["0.7,0", "1"]) == (0.7, 0.0, 1.0)
    for text in ("warm", "-1", ""):
        with pytest.raises(BadOption, match=r"--temperature: .* is no number from 0"):
            decimals("--temperature", [text])


def test_servers_that_do_not_fit_are_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "device", lambda: "cpu")
    variants = [Variant(name="a"), Variant(name="b"), Variant(name="c", url=URL)]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5 << 30))
    check_memory(variants, weights=0)
    with pytest.raises(BenchmarkError, match=r"2 servers .* need about 6\.2 GiB, 5\.0 GiB are free: compare fewer"):
        check_memory(variants, weights=1 << 30)
    check_memory(variants[2:], weights=1 << 50)


def test_on_a_gpu_servers_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "device", lambda: "cuda")
    shares = [told(one.arguments, "--gpu-memory-utilization") for one in servers(f"mine={URL}", draft_tokens=(1, 2))]
    assert shares == ["0.300", "0.300", "0.300", None]


def test_scenarios_are_files_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.touch()
    assert scenario_files([f"mine={path}"]) == {"mine": path}
    (tmp_path / "My chats 2.jsonl").touch()
    assert list(scenario_files([str(path), str(tmp_path / "My chats 2.jsonl")])) == ["x", "my-chats-2"]
    assert list(scenario_files([])) == ["clinic"]
    for text, problem in (
        (f"t1={path}", "the name t1 is taken"),
        ("mine=absent.jsonl", "absent.jsonl is not a file"),
        ("mine", "mine is not a file"),
        (f"Mine={path}", "is not NAME=FILE"),
    ):
        with pytest.raises(BadOption, match=f"--prompts: .*{problem}"):
            scenario_files([text])


def test_a_file_must_have_prompts_that_the_load_generator_takes(tmp_path: Path) -> None:
    options = SweepOptions(model=DEMO_MODEL, concurrencies=(1,), rounds=1, count=4)
    path = tmp_path / "x.jsonl"
    path.write_text("")
    with pytest.raises(PromptsError, match=r"x\.jsonl holds no prompt"):
        pool(path, options)
    chats = [[{"role": "user", "content": text}] for text in ("I cough.", "cough " * 3000)]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    found = pool(path, options)
    assert (len(found.prompts), found.left_out) == (1, 1)


@pytest.fixture
def listing() -> Iterator[Callable[[dict[str, object]], str]]:
    """`listing(body)` is the address of a server that says `body` at /v1/models."""
    started: list[http.server.HTTPServer] = []

    def serve(body: dict[str, object]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        started.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in started:
        server.shutdown()
        server.server_close()


def test_a_running_server_is_asked_for_its_models(listing: Callable[[dict[str, object]], str]) -> None:
    url = listing({"data": [{"id": "first"}, {"id": "second"}]})
    assert connect(Variant(name="a", url=url)).served_model == "first"
    assert connect(Variant(name="a", url=url, served_model="second")).served_model == "second"
    with pytest.raises(VariantError, match=r"a: .* has no model third; it has first, second"):
        connect(Variant(name="a", url=url, served_model="third"))
    with pytest.raises(VariantError, match="lists no models"):
        connect(Variant(name="a", url=listing({"error": "no"})))


def test_a_server_that_is_down_ends_it_with_one_line_and_leaves_the_result_there(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    result(1).write(out)
    before = out.read_bytes()
    command = ["bench", "serving", "--out", str(out), "--variant", f"a={URL}", "--work", str(tmp_path / "work")]
    done = CliRunner().invoke(app, [*command, "--count", "1", "--concurrency", "1"])
    assert isinstance(done.exception, VariantError)
    assert f"{URL} lists no models" in str(done.exception)
    assert out.read_bytes() == before
    assert not list(tmp_path.glob("*.partial.json"))


def test_ctrl_c_writes_what_was_measured_and_the_same_command_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [2, 99]

    def measure(turn: Turn, prompts: Sequence[Prompt]) -> Record:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        seen: Record = {
            "variant": turn.variant.name,
            "index": turn.cell.index,
            "requests": len(prompts),
            "duration_s": 1.0,
        }
        rates: Record = {"output_tokens": 10, "output_tokens_per_s": 10.0, "median_ttft_ms": 1.0, "median_tpot_ms": 1.0}
        place: Record = {"scenario": turn.cell.scenario, "concurrency": turn.cell.concurrency, "temperature": 0.0}
        return {**seen, **rates, **place, "steps": None, "goodput_per_s": None, "texts": "aa"}

    monkeypatch.setattr(bench, "sweep", lambda plan, points: measure_missing(plan, points, measure))
    options = SweepOptions(model=DEMO_MODEL, concurrencies=(1,), rounds=2, count=1)
    command = Command(tmp_path / "r.json", Servers(DEMO_MODEL, None, (4,), (), None, ()), (), options, tmp_path / "w")
    assert run(command) == 130
    partial = ResultFile.read(command.out)
    assert (partial.figures["complete"], len(partial.runs)) == (0, 2)
    assert partial.figures["speedup_k4_c1"] == 1
    left.pop(0)
    assert run(command) == 0
    whole = ResultFile.read(command.out)
    assert (whole.figures["complete"], len(whole.runs), left) == (1, 4, [97])
    assert whole.runs[:2] == partial.runs
    model = ["--model", "checkpoints/clinic-demo/main"]
    k4 = [*model, "--draft", "checkpoints/clinic-demo/draft", "--draft-tokens", "4"]
    assert whole.provenance.arguments["variants"] == {"none": [*model, "--no-draft"], "k4": k4}


def result(complete: float, benchmark: str = "serving", **versions: str) -> ResultFile:
    provenance = Provenance(
        commit="c", versions=versions or artefacts.versions(), arguments={}, seeds=[0], inputs={}, machine={}
    )
    runs = [Run(benchmark=benchmark, measured={})]
    return ResultFile(provenance=provenance, runs=runs, figures={"complete": complete})


def test_a_result_of_another_kind_or_version_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    assert earlier(out) is None
    result(1).write(out)
    assert earlier(out) == result(1)
    result(1, aerie="0.0.1").write(out)
    with pytest.raises(ResultsError, match=r"of other versions \(aerie 0.0.1, now .*name another by --out"):
        earlier(out)
    result(1, benchmark="tune.step").write(out)
    with pytest.raises(ResultsError, match=r"is of tune\.step"):
        earlier(out)
    out.write_text("{")
    with pytest.raises(ResultsError, match="no result file"):
        earlier(out)


def test_a_whole_result_gives_way_to_a_whole_one_only(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    assert write(result(0), None, out) == out
    assert write(result(1), result(0), out) == out
    assert write(result(0), result(1), out) == tmp_path / "r.partial.json"
    assert ResultFile.read(out).figures["complete"] == 1
