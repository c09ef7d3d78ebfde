# SPDX-License-Identifier: Apache-2.0
"""The report as a page and a picture beside the checkpoint: quant_report.md, quant_report.svg."""

import re
from collections import defaultdict
from pathlib import Path

from aerie.artefacts import write_atomic
from aerie.chart import Bar, Bars, Line, Lines, draw
from aerie.quant.report import QuantReport
from aerie.quant.size import PARTS
from aerie.quant.stream import Checkpoint

PAGE, PICTURE = "quant_report.md", "quant_report.svg"
SHOWN = 10
"""Linear layers with the largest errors that the page names."""


def write_page(folder: Path, source: Checkpoint, report: QuantReport) -> None:
    """Write both into `folder`, which holds the checkpoint."""
    write_atomic(folder / PICTURE, draw(_panels(report)))
    lines = [f"# {report.recipe.method} INT4, {report.recipe.format}", ""]
    lines += _headline(report) + _sizes(folder, source, report) + _quality(report) + _acceptance(report)
    lines += _experts(report) + _worst(report)
    write_atomic(folder / PAGE, "\n".join([*lines, f"![errors]({PICTURE})", ""]))


def _headline(report: QuantReport) -> list[str]:
    recipe = report.recipe
    kind = "symmetric" if recipe.symmetric else "asymmetric"
    return [
        f"Group size {recipe.group_size}, {kind}, clip {recipe.clip}; {report.bits_per_quantised_weight:.3f} bits a "
        f"quantised weight. {report.bytes_before / 1e6:,.1f} MB became {report.bytes_after / 1e6:,.1f} MB: "
        f"{report.ratio:.1%}. Relative error of the weights {report.relative_error:.4f}.",
        "",
    ]


def _sizes(folder: Path, source: Checkpoint, report: QuantReport) -> list[str]:
    """Bytes by class of module; of tensors, without headers."""
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for index, checkpoint in enumerate((source, Checkpoint.open(folder))):
        for name, tensor in checkpoint.stored.items():
            part = next((part for part, pattern in PARTS.items() if re.match(pattern, name)), "other")
            rows[part][index] += tensor.size
    table = ["| part | before, MB | after, MB | ratio |", "|---|---:|---:|---:|"]
    table += [
        f"| {part} | {old / 1e6:,.2f} | {new / 1e6:,.2f} | {new / old:.1%} |"
        for part, (old, new) in sorted(rows.items())
    ]
    return ["## Size", "", *table, ""]


def _quality(report: QuantReport) -> list[str]:
    quality = report.quality
    if quality is None:
        return ["Quality was not measured: the recipe names no held-out text.", ""]
    return [
        "## Quality on held-out text",
        "",
        "| | before | after |",
        "|---|---:|---:|",
        f"| perplexity | {quality.perplexity_before:.4f} | {quality.perplexity_after:.4f} |",
        "",
        f"Perplexity rose by {quality.perplexity_loss:.2%}; mean KL divergence {quality.kl:.5f} nats; both models "
        f"put the same token first for {quality.top1_agreement:.2%} of {quality.tokens:,} tokens.",
        "",
    ]


def _acceptance(report: QuantReport) -> list[str]:
    found = report.acceptance
    if found is None:
        return []
    return [
        "## Acceptance of a draft",
        "",
        f"{found.draft}, {found.draft_tokens} tokens drafted, temperature {found.temperature:g}, {found.prompts} "
        f"prompts: mean acceptance length {found.before:.3f} on the unquantised model, {found.after:.3f} on this one.",
        "",
    ]


def _experts(report: QuantReport) -> list[str]:
    counted = [(index, layer) for index, layer in enumerate(report.decoder) if layer.tokens_by_expert]
    if not counted:
        return []
    table = ["| layer | fewest | median | most |", "|---:|---:|---:|---:|"]
    for index, layer in counted:
        ordered = sorted(layer.tokens_by_expert)
        table.append(f"| {index} | {ordered[0]:,} | {ordered[len(ordered) // 2]:,} | {ordered[-1]:,} |")
    few = [name for _, layer in counted for name in layer.fallbacks]
    said = "None had too few." if not few else f"Too few, and rounded without regard to inputs: {', '.join(few)}."
    return ["## Calibration tokens by expert", "", *table, "", said, ""]


def _worst(report: QuantReport) -> list[str]:
    worst = sorted(report.layers, key=lambda layer: -layer.relative_error)[:SHOWN]
    table = ["| linear layer | shape | relative error |", "|---|---|---:|"]
    table += [f"| {one.name} | {one.shape[0]} x {one.shape[1]} | {one.relative_error:.4f} |" for one in worst]
    return ["## Largest errors of weights", "", *table, ""]


def _panels(report: QuantReport) -> list[Lines | Bars]:
    kinds: dict[str, list[float]] = defaultdict(list)
    for layer in report.layers:
        kinds[layer.name.rpartition(".")[2]].append(layer.relative_error)
    bars = [Bar(kind, sum(errors) / len(errors)) for kind, errors in sorted(kinds.items())]
    panels: list[Lines | Bars] = [Bars("Error of weights by kind of layer", "relative error", bars)]
    if report.decoder:
        lines = [
            Line(text, [(index, layer.output_errors[text]) for index, layer in enumerate(report.decoder)])
            for text in report.decoder[0].output_errors
        ]
        panels.append(Lines("Error of outputs behind each layer", "decoder layer", "relative error", lines))
    return panels
