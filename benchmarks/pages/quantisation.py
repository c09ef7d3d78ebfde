# SPDX-License-Identifier: Apache-2.0
"""What INT4 costs: a table for each model, a row for each way of quantising it; and how the shipped demo agrees."""

import re

from aerie.benchmarks.pages.load import Results, measured

NAME = "int4-quality"
SHIPPED = "dense_autoround_g128_sym"
QUALITY = {
    "ppl_loss": ("perplexity", "{:+.2%}"),
    "kl": ("KL, nats", "{:.5f}"),
    "top1": ("same first token", "{:.2%}"),
    "acceptance": ("acceptance length", "{:.2f}"),
    "cpu_seconds": ("seconds", "{:.0f}"),
    "peak_gib": ("peak memory, GiB", "{:.2f}"),
}
MODELS = {"dense": "The clinic's model, dense", "moe": "A small mixture of experts, 16 experts, top 4"}


def table(results: Results) -> str:
    """Both models."""
    figures = results[NAME].figures
    lines: list[str] = []
    for model, title in MODELS.items():
        names = [name.removesuffix("_ppl_loss") for name in figures if re.fullmatch(rf"{model}_\w+_ppl_loss", name)]
        shown = {key: said for key, said in QUALITY.items() if f"{names[0]}_{key}" in figures}
        plain = figures.get(f"{model}_bf16_acceptance")
        lines += [f"{title}{'' if plain is None else f' (acceptance length in 16 bit {plain:.2f})'}:", ""]
        lines += [
            "| | " + " | ".join(said for said, _ in shown.values()) + " |",
            "| --- " + "| ---: " * len(shown) + "|",
        ]
        for name in names:
            cells = [
                form.format(figures[f"{name}_{key}"]) for key, (_, form) in shown.items() if f"{name}_{key}" in figures
            ]
            cells += ["–"] * (len(shown) - len(cells))
            lines.append(f"| {_way(name.removeprefix(f'{model}_'))} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join([*lines, f"{measured(results[NAME])}.", ""])


def _way(name: str) -> str:
    generic = "generic_" in name
    method, group, kind = name.removeprefix("generic_").split("_")
    said = {"rtn": "rounding", "awq": "AWQ", "autoround": "AutoRound"}[method]
    kind = {"sym": "symmetric", "asym": "asymmetric"}[kind]
    return f"{said}, {group.removeprefix('g')}, {kind}{', on generic English' if generic else ''}"


def shipped(results: Results) -> str:
    """The way that the demo is made, and its answers beside those of 16 bit."""
    result = results[NAME]
    answers = next(run.measured["answers"] for run in result.runs if run.benchmark == "quality.agreement")
    figures = result.figures
    return (
        f"The shipped demo is made with the best of them, AutoRound in groups of 128, symmetric. Of {answers} greedy "
        "answers\n"
        f"to held-out patients {figures['turn_agreement']:.0%} are the same kind of turn as 16 bit's,"
        f" {figures['turn_agreement_answer']:.0%} the same to the letter, reasoning aside,\n"
        f"and {figures['turn_agreement_tokens']:.0%} token by token (`benchmarks/quality/agreement.py`).\n"
    )
