# SPDX-License-Identifier: Apache-2.0
"""Every figure in a page has a result file, and every result file a commit that holds the code which made it."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WRITTEN = re.compile(r"<!-- (figures|options|settings): begin.*?<!-- \1: end -->", re.DOTALL)
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
# A number and the unit of something measured. What a page defines or sets has such units too: see ALLOWED.
FIGURE = re.compile(
    r"(?<![\w.,])\d[\d,]*(?:\.\d+)?"
    r"(?:×(?!\d)| ?(?:%|± ?\d|tokens?/s|tokens (?:a|per) second|times\b|(?:ms|µs|MiB|[GT]B/s)\b))"
)
SOURCE = re.compile(r"benchmarks/results/([\w-]+)\.json")
PERFORMANCE = "docs/performance.md"
# (page, figure) -> why it is none of ours: no measurement, or one that others made.
ALLOWED = {
    ("docs/benchmarks.md", "95 %"): "the level of an interval, and the power of a test",
    ("docs/benchmarks.md", "1 %"): "the level of a test",
    ("docs/benchmarks.md", "1 MiB"): "a verdict's bound",
    ("docs/clinic.md", "75 %"): "a share that the corpus is made with",
    ("docs/clinic.md", "25 %"): "a share that the corpus is made with",
    ("docs/decisions/0006-int4-experts-on-cpu.md", "5 times"): "1 over figures of the file that the page names",
    ("docs/decisions/0008-draft-step.md", "61 µs"): "bytes over a bandwidth: arithmetic",
    ("docs/decisions/0008-draft-step.md", "16 µs"): "bytes over a bandwidth: arithmetic",
    ("docs/kernels.md", "4.3 TB/s"): "nine tenths of a data sheet's bandwidth",
    ("docs/kernels.md", "60 %"): "an estimate, which the page calls one",
    ("docs/operations.md", "24 times"): "a bound that tests/server/door/test_costs.py holds",
    ("docs/operations.md", "512 MiB"): "an option's default",
    ("docs/security.md", "4 MiB"): "an option's default",
}


def pages(root: Path) -> list[str]:
    found = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").rglob("*.md")]
    return sorted(path.relative_to(root).as_posix() for path in found)


def by_hand(text: str) -> str:
    """A page without what programs write into it, and without code."""
    return CODE.sub("", WRITTEN.sub("", text))


def figures(root: Path, page: str) -> Iterator[tuple[str, str]]:
    """Figures written by hand, each with its paragraph (in which code still names files)."""
    for paragraph in re.split(r"\n\s*\n", WRITTEN.sub("", (root / page).read_text())):
        for match in FIGURE.finditer(by_hand(paragraph)):
            yield match[0], paragraph


def is_of(figure: str, values: list[float]) -> bool:
    """Whether a number, as precisely as it is written, is one of the values; `N %` also N hundredths."""
    digits = figure.replace(",", "")
    number = re.match(r"[\d.]+", digits)
    assert number is not None
    half = 0.5 * 10.0 ** -len(number[0].partition(".")[2])
    scale = 100 if digits.endswith("%") else 1
    return any(abs(abs(value) * scale - float(number[0])) <= half * 1.0001 for value in values)


def test_figures_written_by_hand_are_none_of_ours(root: Path) -> None:
    """Put what was measured into a section of docs/render_figures.py, or name its result file in the paragraph."""
    unsourced = []
    for page in pages(root):
        for figure, paragraph in figures(root, page) if page != PERFORMANCE else ():
            named = [root / match[0] for match in SOURCE.finditer(paragraph)]
            values = [value for path in named for value in json.loads(path.read_text())["figures"].values()]
            if (page, figure) not in ALLOWED and not is_of(figure, values):
                unsourced.append((page, figure))
    assert unsourced == []


def test_the_list_of_exceptions_is_no_longer_than_it_must_be(root: Path) -> None:
    found = {(page, figure) for page in pages(root) for figure, _ in figures(root, page)}
    assert set(ALLOWED) - found == set(), "no longer in the page: take it off the list"


@pytest.mark.parametrize(
    "text",
    ["1.86× the", "3 % more", "101.5 tokens/s", "101 tokens per second", "12 ms", "406 MiB", "3.08 ± 0.03",
     "5.8 times as", "97%.", "14,700 tokens a second"],
)  # fmt: skip
def test_the_rule_knows_a_figure(text: str) -> None:
    assert FIGURE.search(text)


@pytest.mark.parametrize(
    "text", ["K = 4", "128 × 128", "three rounds", "1024 tokens", "Python 3.11", "sm_90", "M1.5%x"]
)
def test_the_rule_leaves_other_numbers_alone(text: str) -> None:
    assert not FIGURE.search(text)


def test_a_figure_is_its_files_only_as_precisely_as_it_is_written() -> None:
    assert is_of("1.86×", [1.8604])
    assert not is_of("1.87×", [1.8604])
    assert is_of("97 %", [0.97])
    assert is_of("14,713 times", [14713.0])
    assert not is_of("1.9 times", [])


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def history(root: Path) -> None:
    """Skips where there is no history to look into: an unpacked source distribution, a shallow clone."""
    asked = git(root, "rev-parse", "--is-shallow-repository")
    if asked.returncode or asked.stdout.strip() != "false":
        pytest.skip("no git history here")


def results(root: Path) -> list[Path]:
    return sorted((root / "benchmarks/results").glob("*.json"))


def commits(provenance: dict[str, Any]) -> set[str]:
    parts = (provenance.get("parts") or {}).values()
    return set(provenance["commit"].split("+")).union(*(commits(part) for part in parts))


def landed(root: Path, named: set[str]) -> set[str]:
    """The commits, with the one here in the place of each whose branch was folded when it landed."""
    folded: dict[str, str] = json.loads((root / "benchmarks/folded_commits.json").read_text())
    return {folded.get(commit, commit) for commit in named}


def holds(root: Path, commit: str, benchmark: str) -> bool:
    """Whether a commit has the benchmark: a module of its name, or one of the room's that writes it into results."""
    module = f"benchmarks/{benchmark.replace('.', '/')}.py"
    if git(root, "cat-file", "-e", f"{commit}:{module}").returncode == 0:
        return True
    return git(root, "grep", "-q", "-F", f'"{benchmark}"', commit, "--", "benchmarks/*.py").returncode == 0


def faults(root: Path, result: dict[str, Any]) -> Iterator[str]:
    named = landed(root, commits(result["provenance"]))
    for commit in sorted(named):
        if git(root, "merge-base", "--is-ancestor", commit, "HEAD").returncode:
            yield f"{commit} is no ancestor of this one"
    for benchmark in sorted({run["benchmark"] for run in result["runs"]}):
        if not any(holds(root, commit, benchmark) for commit in named):
            yield f"{' and '.join(sorted(named))} has no {benchmark}"


@pytest.mark.usefixtures("history")
def test_a_results_commit_is_in_the_history_and_holds_the_code(root: Path) -> None:
    assert {path.name: list(faults(root, json.loads(path.read_text()))) for path in results(root)} == {
        path.name: [] for path in results(root)
    }


def test_no_commit_is_said_to_be_folded_without_need(root: Path) -> None:
    named = set().union(*(commits(json.loads(path.read_text())["provenance"]) for path in results(root)))
    assert set(json.loads((root / "benchmarks/folded_commits.json").read_text())) <= named


@pytest.mark.usefixtures("history")
def test_a_part_from_nowhere_or_of_a_changed_tree_is_found(root: Path) -> None:
    head = git(root, "rev-parse", "--short=12", "HEAD").stdout.strip()
    runs = [{"benchmark": "serving.first_light"}]
    whole = {"provenance": {"commit": head, "parts": {"a": {"commit": head}}}, "runs": runs}
    assert list(faults(root, whole)) == []
    for commit in (f"{head}-dirty", "0123456789ab", "unknown"):
        other = {"provenance": {"commit": head, "parts": {"a": {"commit": commit}}}, "runs": runs}
        assert list(faults(root, other)) == [f"{commit} is no ancestor of this one"]


@pytest.mark.usefixtures("history")
def test_a_commit_that_is_not_there_or_lacks_the_code_is_found(root: Path) -> None:
    head = git(root, "rev-parse", "HEAD").stdout.strip()
    assert holds(root, head, "serving.first_light")
    assert holds(root, head, "kernels.gpu"), "named in a module of another name"
    assert not holds(root, head, "serving.nothing_like_it")
    assert not holds(root, "0123456789ab", "serving.first_light")
    assert git(root, "merge-base", "--is-ancestor", "0123456789ab", "HEAD").returncode
    assert git(root, "merge-base", "--is-ancestor", f"{head[:12]}-dirty", "HEAD").returncode
