# SPDX-License-Identifier: Apache-2.0
"""One engine that measures when told to: a JSON line on stdin asks, one on stdout answers. Called by int4_engine.py.

It ends when stdin does, so that it never outlives who asked.
"""

import gc
import json
import os
import random
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer

from aerie.benchmarks.points import Record
from aerie.benchmarks.serving.cpu_time import Bystanders
from aerie.draft_models.offline import EngineOptions, OfflineEngine, Sampling, offline_engine

PROMPT_TOKENS = 32
WARM_UP_TOKENS = 4
KV_CACHE_BYTES = 512 << 20
"""What `aerie serve` takes on a CPU."""


def resident_bytes() -> int:
    """Resident memory of this process."""
    match = re.search(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError("/proc/self/status has no VmRSS")
    return int(match[1]) << 10


def kernels(worker: Any) -> list[str]:  # noqa: ANN401 - vLLM's worker
    """Names of the classes that run the quantised layers; none in a dense model."""
    schemes = (getattr(module, "scheme", None) for module in worker.model_runner.get_model().modules())
    return sorted({type(scheme.kernel).__name__ for scheme in schemes if scheme is not None})


def prompts(count: int, vocabulary: int, seed: str) -> list[list[int]]:
    """Random tokens: the weights are random too, and no prompt finds an earlier one's answer in the prefix cache."""
    draw = random.Random(seed)
    return [[draw.randrange(vocabulary) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def timed(engine: OfflineEngine, requests: list[list[int]], max_tokens: int) -> Record:
    """All requests at once, each to its full length, the prompt's step included."""
    others, start = Bystanders(), time.perf_counter()
    answers = engine.generate(requests, Sampling(max_tokens=max_tokens, ignore_eos=True))
    seconds = time.perf_counter() - start
    tokens = sum(len(one.token_ids) for each in answers for one in each)
    return {"output_tokens": tokens, "seconds": round(seconds, 4), "cores_others": others.cores()}


def serve(engine: OfflineEngine, asked: TextIO, answers: TextIO, vocabulary: int) -> None:
    """Answer each line of `asked`: {"concurrency": , "max_tokens": , "seed": }."""
    for line in asked:
        job = json.loads(line)
        requests = prompts(job["concurrency"], vocabulary, job["seed"])
        print(json.dumps(timed(engine, requests, job["max_tokens"])), file=answers, flush=True)


def main(
    model: Annotated[Path, typer.Argument()],
    dtype: Annotated[str, typer.Argument()],
    max_tokens: Annotated[int, typer.Argument()],
    levels: Annotated[list[int], typer.Argument()],
) -> None:
    """Load the engine, say what it holds, then measure until stdin ends."""
    # vLLM prints to stdout; what it prints goes where the log goes.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    chosen: Literal["float32", "bfloat16"] = "float32" if dtype == "float32" else "bfloat16"
    engine_options = EngineOptions(
        model=model,
        dtype=chosen,
        max_model_len=PROMPT_TOKENS + max_tokens,
        max_num_seqs=max(levels),
        kv_cache_bytes=KV_CACHE_BYTES,
        in_process=True,
    )
    vocabulary: int = json.loads((model / "config.json").read_text())["vocab_size"]
    with offline_engine(engine_options) as engine:
        gc.collect()
        loaded: Record = {"rss_bytes": resident_bytes(), "kernels": [*engine.in_worker(kernels)]}
        for level in levels:
            engine.generate(prompts(level, vocabulary, "warm-up"), Sampling(WARM_UP_TOKENS, ignore_eos=True))
        print(json.dumps(loaded), file=answers, flush=True)
        serve(engine, sys.stdin, answers, vocabulary)


if __name__ == "__main__":
    typer.run(main)
