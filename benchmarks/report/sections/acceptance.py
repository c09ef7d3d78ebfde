# SPDX-License-Identifier: Apache-2.0
"""How many drafted tokens a target accepts: by position and by domain, from the histograms of steps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aerie.benchmarks.report.cells import numbers, slug
from aerie.benchmarks.report.document import Block, Picture, Table
from aerie.benchmarks.report.sections.findings import Findings, joined, pm
from aerie.benchmarks.results_file import ResultFile
from aerie.chart import Bar, Bars, Line, Lines
from aerie.draft_models.acceptance import AcceptanceCounts, pool

BENCHMARK, EVALUATE = "acceptance", "acceptance.evaluate"
ALL = ""
"""The domain of prompts that have none, or of all together."""


@dataclass(frozen=True)
class Counted:
    """The steps of one variant on one domain."""

    variant: str
    domain: str
    counts: AcceptanceCounts


def counted(result: ResultFile) -> list[Counted]:
    """The runs that tell of acceptance, in order."""
    found = []
    for run in result.runs:
        histogram = run.measured.get("histogram")
        if run.benchmark not in (BENCHMARK, EVALUATE) or not isinstance(histogram, list):
            continue
        counts = tuple(int(one) for one in histogram if isinstance(one, int))
        if len(counts) < 2 or not sum(counts):
            continue
        drafted = int((numbers([run.measured], "drafted") or [sum(counts) * (len(counts) - 1)])[0])
        variant = str(run.measured.get("variant", "draft"))
        domain = str(run.measured.get("domain") or ALL)
        found.append(
            Counted(
                variant,
                ALL if domain in ("all", "overall") else domain,
                AcceptanceCounts(histogram=counts, drafted=drafted),
            )
        )
    return found


def pooled(runs: Iterable[Counted]) -> list[Counted]:
    """Each variant over everything: its run over all domains where there is one, else the sum of its domains."""
    found: dict[str, list[Counted]] = {}
    for one in runs:
        found.setdefault(one.variant, []).append(one)
    return [
        Counted(variant, ALL, pool([one.counts for one in own if one.domain == ALL][:1] or [one.counts for one in own]))
        for variant, own in found.items()
    ]


def findings(result: ResultFile) -> Findings | None:
    """What they come to; None where no run tells of acceptance."""
    runs = counted(result)
    if not runs:
        return None
    whole = pooled(runs)
    domains = list(dict.fromkeys(one.domain for one in runs if one.domain != ALL))
    blocks: list[Block] = [
        Picture(
            "acceptance-positions",
            "Acceptance by position: the share of steps that accepted the token drafted there, and so all before it.",
            [by_position(whole)],
        )
    ]
    if domains:
        alt = "Acceptance length by domain, each step weighing the same."
        blocks.append(Picture("acceptance-domains", alt, [by_domain(result, runs, domains)]))
    blocks.append(_table(result, runs, whole, domains))
    remarks = [
        "Acceptance length is 1 + accepted / steps: the main model's own token counts, 1 is a draft that is never "
        "right.",
        "Every step weighs the same, so long answers count for more than short ones.",
    ]
    if not any(f"acceptance_length_{slug(one.variant)}_std" in result.figures for one in whole):
        remarks.append("Lengths are of one run each, without a spread.")
    else:
        remarks.append("± of an acceptance length is the standard error that the choice of prompts leaves.")
    return Findings(_sentences(runs, whole, domains), blocks, remarks)


def by_position(whole: Sequence[Counted]) -> Lines:
    """A curve a variant."""
    longest = max(len(one.counts.per_position) for one in whole)
    curves = [
        Line(
            one.variant, [(float(at), share) for at, share in enumerate(one.counts.per_position)], notes=[""] * longest
        )
        for one in whole
    ]
    labels = [str(at) for at in range(1, longest + 1)]
    return Lines("Acceptance by position", "position in the draft", "share of steps", curves, labels, from_zero=True)


def by_domain(result: ResultFile, runs: Sequence[Counted], domains: Sequence[str]) -> Bars:
    """A bar for each variant and domain, domain by domain."""
    names = list(dict.fromkeys(one.variant for one in runs))
    found = {(one.domain, one.variant): one for one in runs}
    bars = [
        Bar(
            domain if len(names) == 1 else f"{domain}, {name}",
            found[domain, name].counts.length,
            result.figures.get(f"acceptance_length_{slug(name)}_{slug(domain)}_std"),
            index,
        )
        for domain in domains
        for index, name in enumerate(names)
        if (domain, name) in found
    ]
    return Bars("Acceptance length by domain", "tokens per step", bars)


def _table(result: ResultFile, runs: Sequence[Counted], whole: Sequence[Counted], domains: Sequence[str]) -> Table:
    found = {(one.variant, one.domain): one for one in runs}
    longest = max(len(one.counts.per_position) for one in whole)
    rows = []
    for one in whole:
        own = [found.get((one.variant, domain)) for domain in domains]
        shares = [f"{share:.3f}" for share in one.counts.per_position] + ["–"] * (
            longest - len(one.counts.per_position)
        )
        length = pm(one.counts.length, result.figures.get(f"acceptance_length_{slug(one.variant)}_std"))
        lengths = ["–" if each is None else f"{each.counts.length:.2f}" for each in own]
        rows.append([f"`{one.variant}`", f"{one.counts.steps:,}", length, *lengths, *shares])
    head = ["variant", "steps", "length", *domains, *(f"position {at}" for at in range(1, longest + 1))]
    return Table(head, rows)


def _sentences(runs: Sequence[Counted], whole: Sequence[Counted], domains: Sequence[str]) -> list[str]:
    best = max(whole, key=lambda one: one.counts.length)
    said = [
        f"**A step of the main model yields {best.counts.length:.2f} tokens with `{best.variant}`**, over "
        f"{best.counts.steps:,} steps, with {len(best.counts.per_position)} tokens drafted in each."
    ]
    others = [f"{one.counts.length:.2f} with `{one.variant}`" for one in whole if one is not best]
    if others:
        said.append(f"It is {joined(others)}.")
    own = [one for one in runs if one.variant == best.variant and one.domain in domains]
    if len(own) > 1:
        high, low = (pick(own, key=lambda one: one.counts.length) for pick in (max, min))
        said.append(
            f"Most are accepted in {high.domain} ({high.counts.length:.2f}), fewest in {low.domain} "
            f"({low.counts.length:.2f})."
        )
    return said
