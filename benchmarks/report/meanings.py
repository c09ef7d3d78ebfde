# SPDX-License-Identifier: Apache-2.0
"""What a figure means and which way is better, by its name; the first pattern that fits a name counts."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Better = Literal["up", "down"]
SPREADS = ("_std", "_min", "_high", "_seeds", "_null")
"""Endings of figures that tell how far another one can be trusted."""


@dataclass(frozen=True)
class Meaning:
    """What the figures of a pattern are; `better` is None where neither way is."""

    pattern: str
    text: str
    better: Better | None = None
    exact: bool = False
    """Counted, not measured: the same code gives the same number, so any change is one."""

    def fits(self, name: str) -> bool:
        """Whether a figure is of this kind."""
        return re.search(self.pattern, name) is not None


MEANINGS = (
    Meaning(r"^complete$", "1 when every point was measured, 0 when the run was cut short", "up"),
    Meaning(
        r"^crossover_", "largest number of requests in flight up to which speculation is not slower than none", "up"
    ),
    Meaning(r"^min_ratio_vs_best$", "the least of `tuned_ratio_cN`", "up"),
    Meaning(r"^min_hindsight_vs_best$", "the least of `tuned_hindsight_cN`", "up"),
    Meaning(r"^tuned_ratio", "the tuned schedule's tokens per second over those of the best other variant", "up"),
    Meaning(r"^tuned_hindsight", "the same over the one that came out best in the very rounds it is compared in", "up"),
    Meaning(r"^prediction_error", "relative error of the predicted throughput", "down"),
    Meaning(r"^throughput_ratio", "our server's tokens per second over those of the bare `vllm serve`", "up"),
    Meaning(r"^ttft_ratio", "our server's median time to the first token over that of the bare `vllm serve`", "down"),
    Meaning(r"^p99_ratio", "99th percentile of the answers' time under overload over that at capacity", "down"),
    Meaning(r"(_memory|_rss|^memory|^rss)_ratio|_a?sym_ratio$", "size over that of the 16-bit model", "down"),
    Meaning(r"speedup", "output tokens per second over those of what it is compared with", "up"),
    Meaning(r"^speed_ratio", "our trainer's tokens per second over speculators'", "up"),
    Meaning(r"^e2e_ratio", "tokens per second of INT4 over those of 16 bit", "up"),
    Meaning(r"_ratio|^ratio_", "the other way's time over ours: above 1 ours is faster", "up"),
    Meaning(r"tokens_per_s", "output tokens per second, pooled over rounds", "up"),
    Meaning(r"requests_per_s|goodput", "requests answered per second", "up"),
    Meaning(r"^acceptance_position", "share of steps that accepted the token drafted at that position", "up"),
    Meaning(r"^acceptance_rate", "accepted tokens over drafted tokens", "up"),
    Meaning(
        r"acceptance|^tau_", "tokens that one step of the main model yields, its own included (1 without a draft)", "up"
    ),
    Meaning(r"^gain_|_gain", "relative gain in acceptance length", "up"),
    Meaning(r"identical|agreement|top1", "share that is the same as the reference's", "up"),
    Meaning(r"^parse_rate", "share of greedy answers that parse as the expected turn", "up"),
    Meaning(r"ttft_ms", "median time to the first token, ms", "down"),
    Meaning(r"tpot_ms", "median time per output token after the first, ms", "down"),
    Meaning(r"_ms(_|$)", "milliseconds", "down"),
    Meaning(r"_kl(_|$)|^kl(_|$)", "KL divergence from the 16-bit model, nats a token", "down"),
    Meaning(r"ppl_loss", "relative rise of perplexity over the 16-bit model", "down"),
    Meaning(r"loss|perplexity|error|difference|total_variation", "a loss, error or distance", "down"),
    Meaning(r"^us_", "microseconds", "down"),
    Meaning(r"^share_", "bytes that must move over our time, over the bandwidth of a copy", "up"),
    Meaning(r"per_weight$", "instructions of the main loop for each weight", "down", exact=True),
    Meaning(r"_(registers|shared_bytes|spilled_bytes|conversions)$", "of the compiled kernel", "down", exact=True),
    Meaning(r"_programs$", "programs that a multiprocessor has room for", "up", exact=True),
    Meaning(r"_mib|_gib|bytes", "memory", "down"),
    Meaning(r"growth|per_1000_requests", "what a process holds more after so many requests", "down"),
    Meaning(r"^(flat|control_flagged)$", "1 when the verdict holds", "up", exact=True),
    Meaning(r"^lost$", "requests without an answer", "down", exact=True),
    Meaning(r"seconds|_s(_|$)", "seconds", "down"),
)


def is_spread(name: str) -> bool:
    """Whether a figure tells another one's spread."""
    return name.endswith(SPREADS)


def meaning(name: str) -> Meaning | None:
    """What a figure is; None where no pattern knows it. The control of a test is no result."""
    if is_spread(name) or (name.startswith("control_") and name != "control_flagged"):
        return None
    return next((one for one in MEANINGS if one.fits(name)), None)


def of(names: Iterable[str]) -> list[Meaning]:
    """The meanings that some figures have, each once, in the order above."""
    known = {found.pattern for name in names if (found := meaning(name)) is not None}
    return [one for one in MEANINGS if one.pattern in known]
