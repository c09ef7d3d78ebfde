# SPDX-License-Identifier: Apache-2.0
"""One run of the load generator `vllm bench serve` against a server, and what it reports."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.prompts import Prompt
from aerie.benchmarks.serving.generator import Generator

RENAMED = {
    "duration_s": "duration",
    "requests": "completed",
    "input_tokens": "total_input_tokens",
    "output_tokens": "total_output_tokens",
    "output_tokens_per_s": "output_throughput",
    "requests_per_s": "request_throughput",
    "goodput_per_s": "request_goodput",
    "spec_decode_positions": "spec_decode_per_position_acceptance_rates",
    "texts": "generated_texts",
}
RESULT = "result.json"
"""What the load generator saves in the folder of a run."""
TIMES = "ttft,tpot,itl,e2el"
SHORTEST_PROMPT, LONGEST_PROMPT, LONGEST = 4, 1024, 2048
"""Tokens of a prompt, and with its answer, that the ShareGPT reader takes; it leaves out the others."""


class LoadError(BenchmarkError):
    """The load generator failed, or some of its requests did."""


class LoadOptions(BaseModel):
    """How requests are put: all at once, `concurrency` in flight, each to its natural end; greedy at temperature 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: Path
    max_tokens: int
    concurrency: int
    warmups: int = 2
    temperature: float = 0.0
    goodput: dict[str, float] = {}
    """Longest times in ms, by `ttft`, `tpot` or `e2el`, that a request may take to count as a good one."""
    served_model: str | None = None
    """What the server calls its model; the first one it lists without."""
    ignore_eos: bool = False
    """Whether every answer has `max_tokens`."""
    cache_salt: str | None = None
    """Keeps prompts that were put before, under another one, from being found in the prefix cache."""


class LoadReport(BaseModel):
    """What `vllm bench serve --save-result --save-detailed` measured; times in ms unless named `_s`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    duration_s: float
    requests: int
    input_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    requests_per_s: float
    goodput_per_s: float | None = None
    mean_ttft_ms: float
    median_ttft_ms: float
    p90_ttft_ms: float
    p99_ttft_ms: float
    mean_tpot_ms: float
    median_tpot_ms: float
    p90_tpot_ms: float
    p99_tpot_ms: float
    mean_itl_ms: float
    median_itl_ms: float
    p90_itl_ms: float
    p99_itl_ms: float
    mean_e2el_ms: float
    median_e2el_ms: float
    p90_e2el_ms: float
    p99_e2el_ms: float
    spec_decode_num_drafts: int | None = None
    spec_decode_draft_tokens: int | None = None
    spec_decode_accepted_tokens: int | None = None
    spec_decode_positions: tuple[float, ...] | None = None
    """Share of steps that accepted the token drafted at each position."""
    client_cpu_s: float
    texts: tuple[str, ...]

    @classmethod
    def read(cls, saved: dict[str, Any], client_cpu_s: float) -> Self:
        """From the load generator's own JSON; raises LoadError when a request failed."""
        errors = [error for error in saved.get("errors", []) if error]
        if saved.get("failed") or errors:
            raise LoadError(f"{saved.get('failed')} of the requests failed: {errors[:1]}")
        values = {name: saved.get(RENAMED.get(name, name)) for name in cls.model_fields}
        try:
            return cls.model_validate(values | {"client_cpu_s": client_cpu_s})
        except ValidationError as error:
            raise LoadError(f"the load generator's result lacks what is expected: {error}") from error


def write_dataset(path: Path, prompts: Sequence[Prompt]) -> None:
    """Write prompts, already rendered with the chat template, as a dataset the load generator reads.

    In the ShareGPT form, because its reader for JSONL (`--dataset-name custom`) needs pandas, which serving does not.
    """
    path.write_text(json.dumps([{"conversations": [{"value": one.text}, {"value": ""}]} for one in prompts]))


def bench_arguments(url: str, dataset: Path, saved: Path, count: int, options: LoadOptions) -> list[str]:
    """Arguments of `vllm bench serve`."""
    # Special tokens stay in the texts so that comparing two servers' texts is as good as comparing their tokens.
    body: dict[str, JsonValue] = {"add_special_tokens": False, "skip_special_tokens": False}
    if options.cache_salt is not None:
        body["cache_salt"] = options.cache_salt
    values = {
        "--backend": "openai",
        "--base-url": url,
        "--endpoint": "/v1/completions",
        "--tokenizer": options.tokenizer,
        "--dataset-name": "sharegpt",
        "--dataset-path": dataset,
        "--num-prompts": count,
        "--output-len": options.max_tokens,
        "--max-concurrency": options.concurrency,
        "--num-warmups": options.warmups,
        "--temperature": options.temperature,
        "--extra-body": json.dumps(body),
        "--percentile-metrics": TIMES,
        "--metric-percentiles": "50,90,99",
        "--result-dir": saved.parent,
        "--result-filename": saved.name,
    }
    if options.served_model is not None:
        values["--model"] = options.served_model
    switches = ["--no-oversample", "--disable-shuffle", "--disable-tqdm", "--save-result", "--save-detailed"]
    goodput = [f"{name}:{most:g}" for name, most in options.goodput.items()]
    if options.ignore_eos:
        switches.append("--ignore-eos")
    words = [str(word) for pair in values.items() for word in pair]
    return [*words, *switches, *(["--goodput", *goodput] if goodput else [])]


def put_load(
    url: str, prompts: Sequence[Prompt], options: LoadOptions, directory: Path, generator: Generator | None = None
) -> LoadReport:
    """Put all prompts to the server at `url`; raises LoadError unless every one was answered.

    Without a `generator` one is started for this run.
    """
    directory.mkdir(parents=True, exist_ok=True)
    dataset, saved = directory / "prompts.json", directory / RESULT
    saved.unlink(missing_ok=True)
    write_dataset(dataset, prompts)
    log = directory / "bench.log"
    arguments = bench_arguments(url, dataset, saved, len(prompts), options)
    with Generator() if generator is None else nullcontext(generator) as running:
        status, client_cpu_s = running.run(arguments, log)
    if status or not saved.exists():
        raise LoadError(f"vllm bench serve ended with {status}:\n{log.read_text(errors='replace')[-2000:]}")
    report = LoadReport.read(json.loads(saved.read_text()), round(client_cpu_s, 2))
    if report.requests != len(prompts):
        raise LoadError(
            f"{report.requests} of {len(prompts)} prompts were answered; the load generator leaves out prompts of more "
            f"than {LONGEST_PROMPT} tokens, or {LONGEST} with the answer"
        )
    return report
