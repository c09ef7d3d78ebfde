# SPDX-License-Identifier: Apache-2.0
"""Our draft trainer's tokens per second beside speculators', on the same captured consultations.

`.venv-oracle/bin/python -m aerie.benchmarks.training.speed --out benchmarks/results/draft-trainer-speed.json`, after
`make oracle`, on a machine that has nothing else to do. The first run answers and captures the consultations, which
takes minutes more; they stay in `--work`.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from aerie.artefacts import REPOSITORY
from aerie.benchmarks import options
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.training import peer
from aerie.benchmarks.training.agreement import agreement
from aerie.benchmarks.training.documents import Corpus, captured, wholly_supervised
from aerie.benchmarks.training.sides import Ours, Theirs
from aerie.benchmarks.training.timing import Timed, fastest, order, ratio_figures
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.shards import Document

NAME = "training.speed"
STEPS = (7, 3, 1)
POSITIONS = (None, 512, 1024, 2048)
"""Lengths of speculators' rows; None gives each document a row of its own. Its default, 8192, is only slower."""
SUPERVISION = ("answers", "all")
COMPARED = 4


class Comparison:
    """Both trainers, made anew for each round's documents, so that neither sees a document twice."""

    def __init__(self, corpus: Corpus, head: Eagle3Head, batch_rows: int) -> None:
        self.corpus, self.head, self.batch_rows = corpus, head, batch_rows

    def ours(self, documents: list[Document]) -> Ours:
        """Our trainer, with a copy of the head."""
        return Ours(_copy(self.head, self.corpus), self.corpus.teacher, documents, self.batch_rows)

    def theirs(self, documents: list[Document], positions: int | None) -> Theirs:
        """Its trainer, with the same weights and, where it may choose, as many documents per update as ours."""
        per_update = max(1, round(len(documents) / self.ours(documents).updates))
        return Theirs(self.head, self.corpus.teacher, documents, positions, per_update)

    def timed(self, side: Ours | Theirs, documents: list[Document], steps: int, supervision: str, round_: int) -> Timed:
        """One epoch of one side."""
        return Timed(
            side="ours" if isinstance(side, Ours) else "speculators",
            arrangement=side.arrangement,
            supervision=supervision,
            steps=steps,
            round=round_,
            tokens=sum(len(one.token_ids) for one in documents),
            updates=side.updates,
            seconds=side.epoch(steps),
        )


def _copy(head: Eagle3Head, corpus: Corpus) -> Eagle3Head:
    copy = Eagle3Head(head.config, corpus.teacher.embed_WH)
    copy.load_state_dict(head.state_dict())
    return copy


def pilot(comparison: Comparison, documents: list[Document]) -> list[Timed]:
    """Every arrangement of speculators, once per number of steps; the first epoch of a process warms up."""
    comparison.theirs(documents[:2], None).epoch(1)
    comparison.ours(documents[:2]).epoch(1)
    return [
        comparison.timed(comparison.theirs(documents, positions), documents, steps, "answers", -1)
        for steps in STEPS
        for positions in POSITIONS
    ]


def rounds(comparison: Comparison, rounds_: list[list[Document]], best: dict[int, int | None]) -> Iterator[Timed]:
    """Every number of steps in every round, sides in alternating order; wholly supervised at the most steps only."""
    for index, captured_documents in enumerate(rounds_):
        for supervision in SUPERVISION:
            wholly = supervision == "all"
            documents = [wholly_supervised(one) for one in captured_documents] if wholly else captured_documents
            for steps in STEPS[:1] if wholly else STEPS:
                for side in order(index):
                    one = comparison.ours(documents) if side == "ours" else comparison.theirs(documents, best[steps])
                    yield comparison.timed(one, documents, steps, supervision, index)


def main(
    out: options.Out,
    work: Annotated[Path, typer.Option(file_okay=False, help="Where the captured consultations are kept.")] = Path(
        REPOSITORY / "runs/draft-trainer-speed"
    ),
    model: options.Model = options.DEMO_MODEL,
    documents: Annotated[int, typer.Option(min=1, help="Consultations in a round.")] = 32,
    repeats: Annotated[int, typer.Option("--rounds", min=2, help="Rounds, each with consultations of its own.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of both trainers.")] = 2,
    draft_vocab_size: Annotated[int, typer.Option(min=1, help="Of the plain head that both train.")] = 2048,
    batch_rows: Annotated[int, typer.Option(min=1, help="Of our batches.")] = 768,
    seed: options.Seed = 0,
) -> None:
    """Time both trainers, and compare what they compute."""
    arguments = options.recorded(locals())
    torch.set_num_threads(threads)
    tried = max(1, documents // 2)
    corpus = captured(model, work, tried + repeats * documents, seed)
    comparison = Comparison(corpus, corpus.head(draft_vocab_size, seed), batch_rows)
    try_out, rest = corpus.documents[:tried], corpus.documents[tried:]
    wholly = [wholly_supervised(one) for one in try_out[:COMPARED]]
    differences = agreement(peer.solve, comparison.head, corpus.teacher, wholly, STEPS)
    piloted = pilot(comparison, try_out)
    names = {"single" if positions is None else f"packed{positions}": positions for positions in POSITIONS}
    best = {steps: names[fastest([one for one in piloted if one.steps == steps])] for steps in STEPS}
    split = [rest[start : start + documents] for start in range(0, repeats * documents, documents)]
    measured = list(rounds(comparison, split, best))
    figures = dict(differences)
    for supervision, steps in sorted({(one.supervision, one.steps) for one in measured}):
        chosen = [one for one in measured if (one.supervision, one.steps) == (supervision, steps)]
        figures |= ratio_figures(chosen, f"ttt{steps}" + ("_all_supervised" if supervision == "all" else ""))
    result = ResultFile(
        provenance=Provenance.now(arguments, [seed], options.inputs(model=model)),
        runs=[Run(benchmark=NAME, measured=asdict(one)) for one in [*piloted, *measured]],
        figures=figures,
    )
    result.write(out)
    options.show(result.figures)


if __name__ == "__main__":
    options.run(main)
