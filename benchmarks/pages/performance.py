# SPDX-License-Identifier: Apache-2.0
"""docs/performance.md: what an operator reads. All of it is computed, and every result has a section."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from aerie.benchmarks.pages import first_light, kernels, server, training
from aerie.benchmarks.pages.load import Results, source
from aerie.benchmarks.pages.quantisation import NAME as QUALITY
from aerie.benchmarks.pages.quantisation import SHIPPED
from aerie.benchmarks.report import build, markdown
from aerie.benchmarks.report.document import Block, Bullets, Folded, Paragraph, Picture, Section, Table
from aerie.benchmarks.report.sections import acceptance, figures, tuning
from aerie.benchmarks.report.sections import kernels as kernel_findings
from aerie.benchmarks.report.sections.findings import pm, ratio

TUNED, INT4_CPU, EXPERTS = "tuned-speculation", "int4-cpu", "int4-experts-cpu"
COVERED = {
    first_light.NAME, TUNED, QUALITY, INT4_CPU, EXPERTS, kernels.NAME, kernels.CUDA, server.OVERHEAD, server.OVERLOAD,
    server.SOAK, training.SPEED, training.MEMORY, training.GATES, training.RATES, training.TARGETS,
}  # fmt: skip
PREFIX = "performance-"
INTRODUCTION = """\
<!-- Written by docs/render_figures.py from benchmarks/results/: change that, not this. -->

# Performance

What was measured, on which machine, at which commit. Every number is computed from the result file that its section
names, which holds the raw runs; [benchmarks.md](benchmarks.md) says how each is measured and what the figures mean.
"""


def page(results: Results) -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(markdown.section(one, link) for one in sections(results))]).rstrip() + "\n"


def assets(results: Results) -> dict[str, str]:
    """Its pictures as SVG, by file name."""
    return {f"{PREFIX}{name}.svg": svg for name, svg in markdown.drawn(sections(results)).items()}


def link(name: str) -> str:
    """Where a picture lies, from the page."""
    return f"assets/{PREFIX}{name}.svg"


def sections(results: Results) -> list[Section]:
    """In the order in which an operator asks."""
    made: list[Callable[[Results], Section]] = [
        summary, speedup, tuned, accepted, int4_quality, int4_memory, gpu,
        server.overhead, server.overload, server.soak, trainer,
    ]  # fmt: skip
    return [make(results) for make in made] + others(results)


def summary(results: Results) -> Section:
    """The few figures that matter most."""
    light, quality, cost = (results[name].figures for name in (first_light.NAME, QUALITY, server.OVERHEAD))
    said = [
        f"**{ratio(light['speedup_c1'], light['speedup_c1_std'])} the output tokens per second** with the draft, one "
        "request in "
        f"flight, at the same text; a step of the main model yields {light['acceptance_length']:.2f} tokens.",
        f"The shipped INT4 raises perplexity by {quality[f'{SHIPPED}_ppl_loss']:.2%} and weighs "
        f"{quality[f'{SHIPPED}_ratio']:.0%} of its 16-bit model.",
        f"`aerie serve` yields {ratio(cost['throughput_ratio_c1'], cost['throughput_ratio_c1_std'])} the tokens per "
        "second of the "
        "bare `vllm serve`.",
    ]
    if TUNED in results.names() and (one := tuning.findings(results[TUNED])) is not None:
        said[1:1] = one.sentences[:1]
    if not results.with_benchmark(kernel_findings.GPU):
        said.append("No GPU has run this code yet: nothing here is a claim about one.")
    return Section("In short", [Bullets(said)])


def speedup(results: Results) -> Section:
    """Of the shipped demo, at one request in flight."""
    result = results[first_light.NAME]
    arguments = result.provenance.parts["speedup"].arguments if result.provenance.parts else {}
    rounds = f"{arguments['rounds']} rounds, " if "rounds" in arguments else ""
    rows = [
        ["output tokens/s with the draft", f"{result.figures['output_tokens_per_s_draft_c1']:.1f}"],
        ["without", f"{result.figures['output_tokens_per_s_no_draft_c1']:.1f}"],
        ["speed-up", ratio(result.figures["speedup_c1"], result.figures["speedup_c1_std"])],
        ["least of the rounds", ratio(result.figures["speedup_c1_min"])],
        ["same greedy answers with and without", f"{result.figures['greedy_identical']:.0%}"],
    ]
    said = (
        f"The shipped demo on a CPU, K = 4, greedy, one request in flight, {rounds}both servers in turn "
        "([how](benchmarks.md#how-the-speed-up-is-kept-fair))."
    )
    blocks: list[Block] = [Paragraph(said), Table(["", ""], rows), Paragraph(source(first_light.NAME, result))]
    return Section("Speed-up", blocks)


def tuned(results: Results) -> Section:
    """The schedule that `aerie tune` found, where its result is there."""
    if TUNED not in results.names():
        text = "There is no result of `aerie tune` here yet: speculation that adapts to load is not measured."
        return Section("Tuned speculation", [Paragraph(text)])
    return _found("Tuned speculation", TUNED, results)


def accepted(results: Results) -> Section:
    """Of the shipped draft, by position."""
    result = results[first_light.NAME]
    found = acceptance.findings(result)
    blocks: list[Block] = [] if found is None else [*_prefixed(found.blocks, "demo"), Bullets(found.remarks)]
    said = Paragraph("The shipped draft on held-out consultations, K = 4, greedy. [Gates and targets compared]"
                     "(draft-training.md#what-to-expect).")  # fmt: skip
    return Section("Acceptance", [said, *blocks, Paragraph(source(first_light.NAME, result))])


def int4_quality(results: Results) -> Section:
    """What INT4 costs the shipped demo, and the range over all ways."""
    result = results[QUALITY]
    shown = {
        "perplexity": ("ppl_loss", "{:+.2%}"),
        "KL, nats a token": ("kl", "{:.5f}"),
        "same first token": ("top1", "{:.2%}"),
        "acceptance length": ("acceptance", "{:.2f}"),
        "size over 16 bit": ("ratio", "{:.0%}"),
    }
    rows = []
    for said, (name, form) in shown.items():
        every = [
            value for key, value in result.figures.items() if key.startswith("dense_") and key.endswith(f"m_{name}")
        ]
        rows.append(
            [said, *(form.format(one) for one in (result.figures[f"{SHIPPED}_{name}"], min(every), max(every)))]
        )
    head = ["", "as shipped", "least of all ways", "most"]
    text = Paragraph(
        "The clinic's model in INT4 against its 16 bit, on held-out text; as shipped: AutoRound, groups of 128, "
        "symmetric. "
        "[All ways, dense and experts](quantisation.md#what-it-costs)."
    )
    return Section("INT4: quality", [text, Table(head, rows), Paragraph(source(QUALITY, result))])


def int4_memory(results: Results) -> Section:
    """INT4 on a CPU: memory and speed, layers and served."""
    result = results[INT4_CPU]
    found = kernel_findings.on_cpu(result)
    blocks: list[Block] = [] if found is None else list(found.blocks)
    served = [
        [
            said,
            f"{result.figures[f'parameter_mib_int4{end}']:,.0f}", f"{result.figures[f'parameter_mib_bf16{end}']:,.0f}",
            f"{result.figures[f'rss_mib_int4{end}']:,.0f}", f"{result.figures[f'rss_mib_bf16{end}']:,.0f}",
            *(_served(result.figures, end, level) for level in (1, 8)),
        ]
        for end, said in (("_float32", "float32, as `aerie serve` on a CPU"), ("_bfloat16", "bfloat16"))
    ]  # fmt: skip
    head = [
        "engine in", "parameters, MiB: INT4", "16 bit", "resident, MiB: INT4", "16 bit",
        "tokens/s over 16 bit, 1 in flight", "8",
    ]  # fmt: skip
    experts = results[EXPERTS]
    blocks += [
        Paragraph("A model of Qwen3-0.6B's shape with random weights, served:"),
        Table(head, served),
        Paragraph(
            "What INT4 saves is reading weights; where a ratio is below 1, 16 bit is faster. "
            f"{source(INT4_CPU, result)}"
        ),
        Folded(
            "A mixture of experts on AVX-512",
            [
                _experts(experts.figures),
                Paragraph(source(EXPERTS, experts)),
            ],
        ),
    ]
    return Section("INT4: memory and speed on a CPU", blocks)


def _experts(found: Mapping[str, float]) -> Table:
    """Our experts' speed over float32, and over vLLM's own experts in float32."""
    rows = []
    for name, value in found.items():
        if match := re.fullmatch(r"avx512_(\d+x\d+)_t(\d+)_speedup_over_float32", name):
            over_vllm = found[name.replace("float32", "vllm_float32")]
            rows.append([match[1], match[2], f"{value:.2f}", f"{over_vllm:.2f}"])
    return Table(["hidden x inner", "tokens", "speed over float32", "over vLLM's float32 experts"], rows)


def _served(found: Mapping[str, float], end: str, level: int) -> str:
    name = f"e2e_ratio{'' if end == '_float32' else end}_c{level}"
    return pm(found[name], found.get(f"{name}_std"))


def gpu(results: Results) -> Section:
    """Times, where a GPU has run the kernels; else what is known without one."""
    static = results[kernels.NAME].figures
    text = (
        f"Compiled for sm_80, sm_90 and sm_100: {static['sm90_m16_g128_sym_bf16_per_weight']:.2f} instructions for "
        "each weight on "
        f"sm_90 up to 16 rows, where a kernel without our layout takes {static['naive_sm90_per_weight']:.2f}. "
        f"Tests hold these, and [kernels.md](kernels.md#what-the-compilers-make-of-it) has them all. "
        f"Counted, not timed. {source(kernels.NAME, results[kernels.NAME])}"
    )
    timed = results.with_benchmark(kernel_findings.GPU)
    blocks: list[Block] = []
    if not timed:
        blocks.append(Paragraph("**No GPU has run these kernels yet; there is no time to report.**"))
    for name in timed:
        blocks += _found(name, name, results).blocks
    return Section("Triton kernels", [*blocks, Paragraph(text)])


def trainer(results: Results) -> Section:
    """The draft's trainer beside speculators."""
    text = training.speed(results) + training.memory(results)
    return Section(
        "Training a draft", [Paragraph(" ".join(text.split()) + " [More](draft-training.md#how-long-it-takes).")]
    )


def others(results: Results) -> list[Section]:
    """Results that no section above names, each in one of its own."""
    timed = set(results.with_benchmark(kernel_findings.GPU))
    return [_found(f"More: {name}", name, results) for name in results.names() if name not in COVERED | timed]


def _found(title: str, name: str, results: Results) -> Section:
    """What a report says of a result."""
    result = results[name]
    found = build.findings(result)
    blocks: list[Block] = []
    if figures.incomplete(result.figures):
        blocks.append(Paragraph(build.CUT_SHORT))
    said = " ".join(sentence for one in found for sentence in one.sentences)
    blocks += [Paragraph(said)] if said else []
    blocks += [block for one in found for block in _prefixed(one.blocks, name)]
    if not any(one.blocks for one in found):
        blocks += figures.tables(result)
    remarks = [remark for one in found for remark in one.remarks]
    blocks += [Bullets(remarks)] if remarks else []
    return Section(title, [*blocks, Paragraph(source(name, result))])


def _prefixed(blocks: Sequence[Block], prefix: str) -> list[Block]:
    """Pictures of two results must not share a file."""
    return [replace(one, name=f"{prefix}-{one.name}") if isinstance(one, Picture) else one for one in blocks]
