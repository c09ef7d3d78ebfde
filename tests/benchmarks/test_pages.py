# SPDX-License-Identifier: Apache-2.0
"""The pages' figures come from result files alone: another result is another page, and no result is no page."""

import json
import re
import shutil
from pathlib import Path

import pytest

from aerie.artefacts import REPOSITORY
from aerie.benchmarks.pages import performance, render
from aerie.benchmarks.pages.load import FOLDER, Results
from aerie.benchmarks.results_file import Provenance, ResultFile, Run

PROVENANCE = Provenance(commit="beef" * 3, versions={}, arguments={}, seeds=[0], inputs={}, machine={"cpu": "A CPU"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout's pages and results, to change."""
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    shutil.copy(REPOSITORY / "README.md", tmp_path)
    shutil.copytree(FOLDER, tmp_path / "results")
    return tmp_path


def check(folder: Path, *more: str) -> int:
    return render.main(["--results", str(folder / "results"), *more], root=folder)


def change(path: Path, figure: str, value: float) -> None:
    found = json.loads(path.read_text())
    assert figure in found["figures"]
    found["figures"][figure] = value
    path.write_text(json.dumps(found))


def tuning() -> ResultFile:
    runs = []
    for k in (0, 5):
        measured = {"concurrency": 1, "draft_tokens": k, "predicted_tokens_per_s": 9.0 + k}
        runs.append(Run.model_validate({"benchmark": "tune.prediction", "measured": measured}))
    cell = {"scenario": "clinic", "temperature": 0.0, "concurrency": 1, "index": 0, "median_tpot_ms": 1.0}
    for variant, rate in {"none": 50.0, "tuned": 95.0}.items():
        rates = {"variant": variant, "output_tokens": rate, "duration_s": 1.0, "output_tokens_per_s": rate}
        runs.append(Run.model_validate({"benchmark": "serving", "measured": {**rates, **cell}}))
    figures = {"min_ratio_vs_best": 0.987, "speedup_c1": 1.9, "tuned_ratio_c1": 0.987}
    return ResultFile(provenance=PROVENANCE, runs=runs, figures=figures)


@pytest.mark.parametrize(
    ("result", "figure", "pages"),
    [
        ("first-light", "speedup_c1", ["README.md", "docs/performance.md"]),
        ("int4-quality", "dense_autoround_g128_sym_kl", ["docs/performance.md", "docs/quantisation.md"]),
        ("draft-gate-study", "tau_plain", ["docs/draft-training.md"]),
        ("server-soak", "memory_mib_worker", ["docs/performance.md"]),
        ("int4-cpu", "ratio_bf16_m1", ["docs/assets/performance-int4-rows.svg", "docs/performance.md"]),
    ],
)
def test_a_page_that_is_not_what_its_result_says_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], result: str, figure: str, pages: list[str]
) -> None:
    change(folder / f"results/{result}.json", figure, 123.456)
    assert check(folder, "--check") == 1
    assert sorted(re.findall(r"^(\S+): differs", capsys.readouterr().out, re.MULTILINE)) == pages
    assert check(folder) == 0
    assert check(folder, "--check") == 0


def test_a_figure_without_a_result_file_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "results/server-soak.json").unlink()
    assert check(folder, "--check") == 1
    assert "server-soak.json: cannot be read" in capsys.readouterr().out


def test_a_figure_that_its_file_lost_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "results/server-overload.json"
    found = json.loads(path.read_text())
    del found["figures"]["recovery_s"]
    path.write_text(json.dumps(found))
    assert check(folder, "--check") == 1
    assert "'recovery_s'" in capsys.readouterr().out


def test_a_number_changed_by_hand_fails_wherever_it_stands(folder: Path) -> None:
    for name in ("docs/performance.md", "docs/draft-training.md", "README.md"):
        path = folder / name
        whole = path.read_text()
        section = whole if name == "docs/performance.md" else next(render.SECTION.finditer(whole))[0]
        number = re.findall(r"\d\.\d\d|\d\.\d", section)[0]
        path.write_text(whole.replace(section, section.replace(number, "9.87", 1)))
        assert check(folder, "--check") == 1
        path.write_text(whole)
    assert check(folder, "--check") == 0


def test_a_section_that_nothing_makes_or_that_a_page_lost_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "docs/kernels.md"
    path.write_text(path.read_text().replace("figures: begin kernels-static", "figures: begin other"))
    assert check(folder, "--check") == 1
    assert "docs/kernels.md: it has the sections other, and kernels-static are made" in capsys.readouterr().out


def test_the_tuned_schedule_has_its_section_when_its_result_is_there_and_says_so_when_not(folder: Path) -> None:
    result = folder / "results" / f"{performance.TUNED}.json"
    result.unlink(missing_ok=True)
    without = performance.page(Results(folder / "results"))
    assert "no result of `aerie tune`" in without
    tuning().write(result)
    results = Results(folder / "results")
    page, pictures = performance.page(results), performance.assets(results)
    for said in (
        "at least 0.987×",
        "1.90×",
        "The prediction favours 5 tokens",
        "`beefbeefbeef`",
        "tuned-speculation.json",
        "A CPU",
    ):
        assert said in page
    assert "no result of `aerie tune`" not in page
    linked = set(re.findall(r"assets/([\w-]+\.svg)", page))
    assert linked == pictures.keys()
    assert "performance-tuned-speculation-tuned-against-best.svg" in linked


def test_a_picture_that_nothing_draws_any_more_is_taken_away(folder: Path) -> None:
    (folder / "results" / f"{performance.TUNED}.json").unlink(missing_ok=True)
    check(folder)
    old = folder / "docs/assets/performance-old.svg"
    old.write_text("<svg/>")
    assert check(folder, "--check") == 1
    assert check(folder) == 0
    assert not old.exists()


def test_a_result_that_no_section_names_gets_one(folder: Path) -> None:
    tuning().write(folder / "results/serving-elsewhere.json")
    page = performance.page(Results(folder / "results"))
    assert "## More: serving-elsewhere" in page


def test_nothing_is_said_of_a_gpu_before_one_was_measured(folder: Path) -> None:
    page = performance.page(Results(folder / "results"))
    assert "No GPU has run these kernels yet" in page
    run = Run(benchmark="kernels.gpu", measured={"kind": "copy", "copy_gbs": 4000.0})
    figures = {"copy_gbs": 4000.0, "complete": 0.0}
    ResultFile(provenance=PROVENANCE, runs=[run], figures=figures).write(folder / "results/kernels-some-gpu.json")
    page = performance.page(Results(folder / "results"))
    assert "No GPU has run" not in page
    assert "4,000 GB a second" in page
    assert "cut short" in page
