# SPDX-License-Identifier: Apache-2.0
"""Put measured figures of benchmarks/results/ into the pages that state them; `--check` only compares.

A page has sections, between `<!-- figures: begin NAME (...) -->` and `<!-- figures: end -->`. docs/performance.md and
its pictures are written whole. Whatever a page says elsewhere is not measured, or tests ask why.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aerie.artefacts import REPOSITORY, write_atomic
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.pages import first_light, kernels, performance, quantisation, training
from aerie.benchmarks.pages.load import FOLDER, Results

SECTION = re.compile(r"(<!-- figures: begin ([\w-]+) [^\n]*-->\n).*?(<!-- figures: end -->)", re.DOTALL)
Maker = Callable[[Results], str]
PAGES: Mapping[str, Mapping[str, Maker]] = {
    "README.md": {"first-light": first_light.table},
    "docs/quantisation.md": {"shipped": quantisation.shipped, "int4-quality": quantisation.table},
    "docs/kernels.md": {"kernels-static": kernels.table},
    "docs/draft-training.md": {
        "trainer-speed": training.speed,
        "trainer-memory": training.memory,
        "gates": training.gates,
        "rates": training.rates,
        "targets": training.targets,
    },
}
PERFORMANCE, ASSETS = "docs/performance.md", "docs/assets"
COMMAND = "docs/render_figures.py"


class PageError(Exception):
    """A page and its sections do not fit."""


def rendered(page: str, makers: Mapping[str, Maker], results: Results) -> str:
    """The page with its sections replaced.

    Raises:
        PageError: it lacks a section, or has one that nothing makes.
    """
    found = [match[2] for match in SECTION.finditer(page)]
    if sorted(found) != sorted(makers):
        raise PageError(f"it has the sections {', '.join(found) or 'none'}, and {', '.join(makers)} are made")
    return SECTION.sub(lambda match: match[1] + makers[match[2]](results) + match[3], page)


def wanted(root: Path, results: Results) -> dict[Path, str]:
    """Every file that holds figures, as it should be."""
    files = {}
    for name, makers in PAGES.items():
        path = root / name
        try:
            files[path] = rendered(path.read_text(encoding="utf-8"), makers, results)
        except PageError as error:
            raise PageError(f"{name}: {error}") from error
    files[root / PERFORMANCE] = performance.page(results)
    return files | {root / ASSETS / name: svg for name, svg in performance.assets(results).items()}


def stale(root: Path, files: Mapping[Path, str]) -> list[Path]:
    """Pictures of the page that nothing makes any more."""
    return sorted(path for path in (root / ASSETS).glob(f"{performance.PREFIX}*.svg") if path not in files)


def main(arguments: Sequence[str] | None = None, root: Path = REPOSITORY) -> int:
    """Write, or with `--check` compare; 1 when a page is not what its result files say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page differs")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of result files")
    chosen = parser.parse_args(arguments)
    try:
        files = wanted(root, Results(chosen.results))
    except (PageError, BenchmarkError) as error:
        print(error)
        return 1
    except KeyError as error:
        print(f"a page states the figure {error}, which no result file has")
        return 1
    differ = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    gone = stale(root, files)
    for path in [*differ, *gone] if chosen.check else []:
        print(f"{path.relative_to(root)}: differs from benchmarks/results; run {COMMAND}")
    if chosen.check:
        return int(bool(differ or gone))
    for path in differ:
        write_atomic(path, files[path])
    for path in gone:
        path.unlink()
    return 0
