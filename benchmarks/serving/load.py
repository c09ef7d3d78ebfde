# SPDX-License-Identifier: Apache-2.0
"""One run of the load generator `vllm bench serve` against a server, and what it reports."""

import json
import resource
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from aerie.benchmarks.engine import bench_serve_command
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.prompts import Prompt

RENAMED = {
    "duration_s": "duration",
    "requests": "completed",
    "input_tokens": "total_input_tokens",
    "output_tokens": "total_output_tokens",
    "output_tokens_per_s": "output_throughput",
    "texts": "generated_texts",
}


class LoadError(BenchmarkError):
    """The load generator failed, or some of its requests did."""


class LoadOptions(BaseModel):
    """How requests are put: all at once, `concurrency` in flight, greedy, each to its natural end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: Path
    max_tokens: int
    concurrency: int
    warmups: int = 2


class LoadReport(BaseModel):
    """What `vllm bench serve --save-result --save-detailed` measured; times in ms unless named `_s`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    duration_s: float
    requests: int
    input_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    median_ttft_ms: float
    p99_ttft_ms: float
    median_tpot_ms: float
    p99_tpot_ms: float
    spec_decode_num_drafts: int | None = None
    spec_decode_draft_tokens: int | None = None
    spec_decode_accepted_tokens: int | None = None
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
    body = {"add_special_tokens": False, "skip_special_tokens": False}
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
        "--temperature": 0,
        "--extra-body": json.dumps(body),
        "--metric-percentiles": 99,
        "--result-dir": saved.parent,
        "--result-filename": saved.name,
    }
    switches = ["--no-oversample", "--disable-shuffle", "--disable-tqdm", "--save-result", "--save-detailed"]
    return [*(str(word) for pair in values.items() for word in pair), *switches]


def put_load(url: str, prompts: Sequence[Prompt], options: LoadOptions, directory: Path) -> LoadReport:
    """Put all prompts to the server at `url`; raises LoadError unless every one was answered."""
    directory.mkdir(parents=True, exist_ok=True)
    dataset, saved = directory / "prompts.json", directory / "result.json"
    write_dataset(dataset, prompts)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = bench_serve_command(bench_arguments(url, dataset, saved, len(prompts), options))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (directory / "bench.log").write_text(done.stdout + done.stderr)
    if done.returncode or not saved.exists():
        raise LoadError(f"vllm bench serve ended with {done.returncode}:\n{done.stderr[-2000:]}")
    client_cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    report = LoadReport.read(json.loads(saved.read_text()), round(client_cpu_s, 2))
    if report.requests != len(prompts):
        raise LoadError(
            f"{report.requests} of {len(prompts)} prompts were answered; the load generator leaves out prompts of more "
            "than 1024 tokens, or 2048 with the answer"
        )
    return report
