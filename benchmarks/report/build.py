# SPDX-License-Identifier: Apache-2.0
"""`aerie bench report`: result files as one HTML page, and as Markdown with its pictures beside it.

First what came out in three sentences, then pictures, then tables, then where it comes from and what to doubt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from aerie.artefacts import write_atomic
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.report import html, markdown
from aerie.benchmarks.report.document import Block, Bullets, Document, Folded, Paragraph, Picture, Section
from aerie.benchmarks.report.sections import acceptance, figures, kernels, provenance, serving, tuning
from aerie.benchmarks.report.sections.findings import Findings
from aerie.benchmarks.results_file import ResultFile

SENTENCES = 3
Maker = Callable[[ResultFile], Findings | None]
MAKERS: tuple[Maker, ...] = (tuning.findings, serving.findings, acceptance.findings, kernels.on_gpu, kernels.on_cpu)
CUT_SHORT = "**This run was cut short (`complete` is 0): what it did not reach is not in it, and means nothing.**"


def findings(result: ResultFile) -> list[Findings]:
    """What each module that knows a kind of run makes of a result; of an unknown kind its bare figures."""
    found = [one for maker in MAKERS if (one := maker(result)) is not None]
    return found or [figures.findings(result)]


def document(results: Mapping[str, ResultFile]) -> Document:
    """The report of some results, by name."""
    told = {name: findings(result) for name, result in results.items()}
    by_file = [[sentence for one in found for sentence in one.sentences] for found in told.values()]
    summary = _in_turn(by_file)[:SENTENCES]
    cut = [name for name, result in results.items() if figures.incomplete(result.figures)]
    if cut:
        summary.append(f"**Cut short: {', '.join(cut)}.** Figures are of what was reached.")
    sections = [_section(name, results[name], found, len(results) > 1) for name, found in told.items()]
    return Document(f"Measured: {', '.join(results)}", summary, sections)


def _in_turn(lists: Sequence[Sequence[str]]) -> list[str]:
    """The first of each, then the second of each, and so on."""
    longest = max((len(one) for one in lists), default=0)
    return [one[at] for at in range(longest) for one in lists if at < len(one)]


def _section(name: str, result: ResultFile, found: Sequence[Findings], several: bool) -> Section:
    blocks: list[Block] = [Paragraph(f"Measured on {provenance.described(result.provenance)}.")]
    if figures.incomplete(result.figures):
        blocks.append(Paragraph(CUT_SHORT))
    if several and (said := " ".join(sentence for one in found for sentence in one.sentences)):
        blocks.append(Paragraph(said))
    blocks += [_named(block, name if several else "") for one in found for block in one.blocks]
    blocks += figures.tables(result)
    remarks = [remark for one in found for remark in one.remarks] + provenance.remarks(result.provenance)
    if remarks:
        blocks.append(Bullets(remarks))
    return Section(name, [*blocks, *provenance.blocks(result)])


def _named(block: Block, prefix: str) -> Block:
    """Pictures of two files must not share a name."""
    if isinstance(block, Folded):
        return replace(block, blocks=[_named(one, prefix) for one in block.blocks])
    if isinstance(block, Picture) and prefix:
        return replace(block, name=f"{prefix}-{block.name}")
    return block


def read(paths: Sequence[Path]) -> dict[str, ResultFile]:
    """The files by the names they have in the report; raises BenchmarkError."""
    found: dict[str, ResultFile] = {}
    for path in paths:
        if path.stem in found:
            raise BenchmarkError(f"{path}: another file is called {path.stem} too; a report tells them apart by name")
        found[path.stem] = ResultFile.read(path)
    return found


def run(paths: Sequence[Path], out: Path) -> list[Path]:
    """Write the report; returns what was written: the page, the Markdown, its pictures.

    Raises:
        BenchmarkError: a file is no result, or cannot be written.
    """
    made = document(read(paths))
    page = out.with_suffix(".md")

    def link(name: str) -> str:
        return f"{out.stem}-{name}.svg"

    files = {out: html.render(made), page: markdown.render(made, link)}
    files |= {out.with_name(link(name)): svg for name, svg in markdown.drawn(made.sections).items()}
    try:
        for path, content in files.items():
            write_atomic(path, content)
    except OSError as error:
        raise BenchmarkError(f"--out: cannot write {error.filename or out}: {error.strerror}") from error
    return list(files)
