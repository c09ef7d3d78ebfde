# SPDX-License-Identifier: Apache-2.0
"""Put measured figures of benchmarks/results/ into the pages that state them; `--check` only compares."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
SECTION = re.compile(r"(<!-- figures: begin[^\n]*-->\n).*?(<!-- figures: end -->)", re.DOTALL)
# figure -> what it says, how it is written, and which figure is its spread over seeds or repeats.
ROWS = {
    "speedup_c1": ("Output tokens per second with the draft, against none (concurrency 1)", "{:.2f}×"),
    "acceptance_length": ("Mean acceptance length of the shipped draft", "{:.2f}"),
    "acceptance_length_gated": ("Gates compared, three seeds, short training: element-wise", "{:.2f}"),
    "acceptance_length_headwise": ("Gates compared: head-wise", "{:.2f}"),
    "acceptance_length_plain": ("Gates compared: none (plain EAGLE-3)", "{:.2f}"),
    "parse_rate": ("Greedy answers on held-out patients that parse as the expected turn", "{:.1%}"),
}
QUALITY = {
    "ppl_loss": ("perplexity", "{:+.2%}"),
    "kl": ("KL, nats", "{:.5f}"),
    "top1": ("same first token", "{:.2%}"),
    "acceptance": ("acceptance length", "{:.2f}"),
    "cpu_seconds": ("seconds", "{:.0f}"),
    "peak_gib": ("peak memory, GiB", "{:.2f}"),
}
COUNTED = {
    "naive_sm90": "unpacked, converted and scaled one by one (`benchmarks/kernels/int4_naive.py`)",
    "sm90_m16_g128_sym_bf16_llvm": "the layout above, subtraction by LLVM",
    "sm90_m16_g128_asym_bf16_llvm": "the same, with zero points",
    "sm90_m16_g128_sym_bf16": "**int4_gemm**: subtraction in PTX",
    "sm90_m16_g128_asym_bf16": "**with zero points**",
    "sm90_m16_g64_sym_bf16": "groups of 64",
    "sm90_m16_g64_asym_bf16": "groups of 64, with zero points",
    "sm90_m16_g128_sym_fp16": "float16",
    "sm90_m16_g128_asym_fp16": "float16, with zero points",
    "sm90_m16_g128_sym_bf16_silu_mul_bias_residual": "SiLU(gate)·up, bias and residual",
    "sm90_m16_g128_asym_bf16_odd": "N and K multiples of nothing, with zero points",
    "sm90_m32_g128_sym_bf16": "up to 32 rows",
    "sm90_m64_g128_sym_bf16": "up to 64 rows",
    "sm80_m16_g128_sym_bf16": "sm_80",
    "sm80_m16_g128_asym_bf16": "sm_80, with zero points",
    "sm100_m16_g128_sym_bf16": "sm_100",
    "sm100_m16_g128_asym_bf16": "sm_100, with zero points",
}
MODELS = {"dense": "The clinic's model, dense", "moe": "A small mixture of experts, 16 experts, top 4"}


class Page(NamedTuple):
    """A page, the result that it states, and what it makes of that."""

    path: Path
    result: Path
    table: Callable[[dict[str, Any]], str]


def first_light(result: dict[str, Any]) -> str:
    """The figures as a Markdown table, with the machine and the commit they were measured on."""
    figures = result["figures"]
    lines = ["| figure | value |", "| --- | --- |"]
    for name, (title, form) in ROWS.items():
        value = form.format(figures[name])
        spread = figures.get(f"{name}_std")
        lines.append(f"| {title} | {value}{'' if spread is None else ' ± ' + form.format(spread)} |")
    return "\n".join([*lines, "", f"{_measured(result)}; ± is the standard deviation.", ""])


def int4_quality(result: dict[str, Any]) -> str:
    """A table for each model, a row for each way of quantising it."""
    figures = result["figures"]
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
    return "\n".join([*lines, f"{_measured(result)}.", ""])


def kernels_static(result: dict[str, Any]) -> str:
    """A row for each build that is told of; instructions under both locked versions of Triton."""
    figures, cuda = result["figures"], json.loads((RESULTS / "kernels-static-cuda.json").read_text())
    versions = [one["provenance"]["versions"]["triton"] for one in (cuda, result)]
    lines = [
        f"| | Triton {versions[0]}, the lock for GPUs | Triton {versions[1]} | registers | KiB shared | programs |",
        "| --- " + "| ---: " * 5 + "|",
    ]
    for name, said in COUNTED.items():
        counts = [one["figures"][f"{name}_per_weight"] for one in (cuda, result)]
        registers, shared, programs = (figures[f"{name}_{key}"] for key in ("registers", "shared_bytes", "programs"))
        cells = [*(f"{count:.2f}" for count in counts), f"{registers:.0f}", f"{shared / 1024:.0f}", f"{programs:.0f}"]
        lines.append(f"| {said} | " + " | ".join(cells) + " |")
    commit = result["provenance"]["commit"]
    return "\n".join(
        [*lines, "", f"Registers, memory and programs: under Triton {versions[1]}. Commit `{commit}`.", ""]
    )


def _way(name: str) -> str:
    generic = "generic_" in name
    method, group, kind = name.removeprefix("generic_").split("_")
    said = {"rtn": "rounding", "awq": "AWQ", "autoround": "AutoRound"}[method]
    kind = {"sym": "symmetric", "asym": "asymmetric"}[kind]
    return f"{said}, {group.removeprefix('g')}, {kind}{', on generic English' if generic else ''}"


def _measured(result: dict[str, Any]) -> str:
    machine, commit = result["provenance"]["machine"], result["provenance"]["commit"]
    return f"Measured on {machine['cpu']}, {machine['cores']} cores, {machine['isa']}; commit `{commit}`"


PAGES = (
    Page(ROOT / "README.md", RESULTS / "first-light.json", first_light),
    Page(ROOT / "docs/quantisation.md", RESULTS / "int4-quality.json", int4_quality),
    Page(ROOT / "docs/kernels.md", RESULTS / "kernels-static.json", kernels_static),
)


def rendered(page: str, said: str) -> str:
    """The page with its figures section replaced."""
    return SECTION.sub(lambda match: match[1] + said + match[2], page)


def main() -> int:
    """Write, or with `--check` compare; 1 when a page is not what its result file says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page differs")
    arguments = parser.parse_args()
    differ = False
    for page in PAGES:
        before = page.path.read_text()
        after = rendered(before, page.table(json.loads(page.result.read_text())))
        if before != after and arguments.check:
            print(f"{page.path.name}: figures differ from {page.result.name}; run docs/render_figures.py")
            differ = True
        elif before != after:
            page.path.write_text(after)
    return int(differ)


if __name__ == "__main__":
    sys.exit(main())
