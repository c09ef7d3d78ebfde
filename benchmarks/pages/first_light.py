# SPDX-License-Identifier: Apache-2.0
"""The README's table."""

from aerie.benchmarks.pages.load import Results, measured

NAME = "first-light"
# figure -> what it says, and how it is written; its `_std` follows where there is one.
ROWS = {
    "speedup_c1": ("Output tokens per second with the draft, against none (concurrency 1)", "{:.2f}×"),
    "acceptance_length": ("Mean acceptance length of the shipped draft", "{:.2f}"),
    "acceptance_length_gated": ("Gates compared, three seeds, short training: element-wise", "{:.2f}"),
    "acceptance_length_headwise": ("Gates compared: head-wise", "{:.2f}"),
    "acceptance_length_plain": ("Gates compared: none (plain EAGLE-3)", "{:.2f}"),
    "parse_rate": ("Greedy answers on held-out patients that parse as the expected turn", "{:.1%}"),
}


def rows(results: Results) -> str:
    """The table alone."""
    figures = results[NAME].figures
    lines = ["| figure | value |", "| --- | --- |"]
    for name, (title, form) in ROWS.items():
        value = form.format(figures[name])
        spread = figures.get(f"{name}_std")
        lines.append(f"| {title} | {value}{'' if spread is None else ' ± ' + form.format(spread)} |")
    return "\n".join([*lines, ""])


def table(results: Results) -> str:
    """With the machine and the commit it was measured on."""
    return f"{rows(results)}\n{measured(results[NAME])}; ± is the standard deviation.\n"
