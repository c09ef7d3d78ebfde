# SPDX-License-Identifier: Apache-2.0
"""What the server costs, what overload does to it, and whether it leaks."""

from collections.abc import Mapping

from aerie.benchmarks.pages.load import Results, source
from aerie.benchmarks.points import number
from aerie.benchmarks.report.document import Block, Paragraph, Section, Table
from aerie.benchmarks.report.sections.findings import pm

OVERHEAD, OVERLOAD, SOAK = "server-overhead", "server-overload", "server-soak"
PROCESSES = {"front": "front end", "engine": "engine core", "worker": "worker"}


def overhead(results: Results) -> Section:
    """`aerie serve` beside `vllm serve`."""
    result = results[OVERHEAD]
    figures = result.figures
    levels = sorted(
        {
            int(name.rsplit("_c", 1)[1])
            for name in figures
            if name.startswith("throughput_ratio_c") and name[-1].isdigit()
        }
    )
    rows = [
        [
            str(level),
            *(pm(figures[f"{what}_ratio_c{level}"], figures[f"{what}_ratio_c{level}_std"])
              for what in ("throughput", "ttft")),
            *(f"{figures[f'ttft_ms_{server}_c{level}']:,.0f}" for server in ("aerie", "vllm")),
        ]
        for level in levels
    ]  # fmt: skip
    head = [
        "requests in flight",
        "tokens/s over vLLM's",
        "time to the first token over vLLM's",
        "ours, ms",
        "vLLM's, ms",
    ]
    rounds = result.provenance.arguments["rounds"]
    said = (
        f"`aerie serve` beside `vllm serve` with the demo and its draft, on the same arguments, {rounds} rounds in "
        "turn "
        "([how](benchmarks.md#what-the-server-costs)); the time to the first token is the median."
    )
    return Section("What the server costs", [Paragraph(said), Table(head, rows), Paragraph(source(OVERHEAD, result))])


def _twice(figures: Mapping[str, float], process: str) -> str:
    first, second = (figures[f"memory_growth_mib_{process}{suffix}"] for suffix in ("", "_second"))
    return f"{first:+.1f}, {second:+.1f}"


def overload(results: Results) -> Section:
    """Twenty times the requests that can be answered."""
    result = results[OVERLOAD]
    figures, arguments = result.figures, result.provenance.arguments
    rows = [
        ["requests per second at capacity", f"{figures['requests_per_s_capacity']:.1f}"],
        ["requests under overload", f"{figures['requests_overload']:,.0f}"],
        ["of them refused", f"{figures['refused_overload']:,.0f}"],
        ["99th percentile of the refusals, ms", f"{figures['reject_p99_ms']:.0f}"],
        ["99th percentile of accepted answers, over that at capacity", f"{figures['p99_ratio_accepted']:.2f}"],
        ["requests without an answer", f"{figures['lost']:.0f}"],
        ["seconds until the server answered as many as before", f"{figures['recovery_s']:.1f}"],
        *(
            [f"growth of the {said} by the first overload, and by the second, MiB", _twice(figures, name)]
            for name, said in PROCESSES.items()
        ),
    ]
    said = (
        f"{arguments['seats']} requests at once and {arguments['queue']} that may wait; the rate at capacity, then "
        f"{arguments['factor']:.0f} times that for {arguments['overload_seconds']:.0f} seconds, twice; both "
        "together, and the longer recovery. [What memory is held, and why](benchmarks.md#overload)."
    )
    return Section("Overload", [Paragraph(said), Table(["", ""], rows), Paragraph(source(OVERLOAD, result))])


def soak(results: Results) -> Section:
    """A mixed load for a long time, and the planted leak."""
    result = results[SOAK]
    figures, arguments = result.figures, result.provenance.arguments
    rows = [
        [
            said,
            f"{figures[f'memory_mib_{name}']:,.0f}",
            f"{figures[f'memory_mib_per_1000_requests_{name}']:+.2f}",
            f"{figures[f'memory_mib_per_1000_requests_{name}_high']:+.2f}",
            f"{figures[f'fds_growth_{name}']:.0f}",
            f"{figures[f'threads_growth_{name}']:.0f}",
        ]
        for name, said in PROCESSES.items()
    ]
    rows.append(
        ["the planted leak", "–", f"{figures['control_memory_mib_per_1000_requests']:+.2f}", "–",
         f"{figures['control_fds_per_1000_requests']:.0f}", f"{figures['control_threads_per_1000_requests']:.0f}"]
    )  # fmt: skip
    head = ["process", "MiB", "MiB by 1,000 requests", "at most (95 %)", "descriptors more", "threads more"]
    blocks: list[Block] = [
        Paragraph(
            f"{figures['requests']:,.0f} requests of a mixed load in {number(arguments, 'seconds') / 60:.0f} minutes: "
            f"{figures['answered']:,.0f} answered, {figures['refused']:,.0f} refused as they must be, "
            f"{figures['left']:,.0f} left "
            f"by their clients, {figures['lost']:.0f} lost. "
            + ("**Nothing grows**" if figures["flat"] == 1 else "**The verdict is not flat**")
            + (
                ", and the planted leak was found"
                if figures["control_flagged"] == 1
                else "; the planted leak was not found"
            )
            + " ([verdict](benchmarks.md#soak))."
        ),
        Table(head, rows),
        Paragraph(f"Descriptors and threads of the planted leak are by 1,000 requests. {source(SOAK, result)}"),
    ]
    return Section("Soak", blocks)
