# SPDX-License-Identifier: Apache-2.0
"""Acceptance of many heads in vLLM: one engine for each head and K, in a process of its own, a few at a time.

`python -m aerie.benchmarks.study.measure JOB` is that process. A point that was measured is not measured again.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from aerie.artefacts import sha256_file, write_json
from aerie.benchmarks.prompts import held_out, render
from aerie.benchmarks.study.heads import StudyError
from aerie.draft_models.measure import Acceptance, evaluate
from aerie.draft_models.offline import EngineOptions, Sampling, offline_engine


class Job(BaseModel):
    """One engine's work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Path
    head: Path
    draft_tokens: int
    temperatures: tuple[float, ...]
    prompts: int
    max_tokens: int
    seed: int

    def key(self) -> str:
        """Names the result: everything that shapes it, the weights themselves included."""
        names = {"target", "head"}
        hashes = {name: sha256_file(getattr(self, name) / "model.safetensors") for name in sorted(names)}
        settings = self.model_dump(mode="json", exclude=names)
        return hashlib.sha256(json.dumps([hashes, settings], sort_keys=True).encode()).hexdigest()[:16]


Measured = dict[float, Acceptance]
"""By temperature."""


def measure_all(jobs: Sequence[Job], folder: Path, parallel: int) -> list[Measured]:
    """Measure every job, `parallel` engines at a time. Raises StudyError."""
    # Engines that share cores wait for each other's threads: two of two threads each took four times as long here as
    # two of one.
    threads = max(1, (os.cpu_count() or 1) // parallel)
    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(lambda job: _measured(job, folder, threads), jobs))


def _measured(job: Job, folder: Path, threads: int) -> Measured:
    path = folder / f"{job.head.name}-{job.draft_tokens}-{job.key()}.json"
    if not path.exists():
        asked, log = path.with_suffix(".job"), path.with_suffix(".log")
        write_json(asked, job.model_dump(mode="json"))
        command = [sys.executable, "-P", "-m", __spec__.name, str(asked), str(path)]
        with log.open("wb") as output:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            run = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
            status = run.returncode
        if status:
            raise StudyError(f"{job.head.name} at K = {job.draft_tokens} was not measured (status {status}); see {log}")
        asked.unlink()
        log.unlink()
    measured = {float(name): Acceptance.model_validate(one) for name, one in json.loads(path.read_text()).items()}
    lengths = ", ".join(f"{one.pooled.length:.3f} at T = {name:g}" for name, one in measured.items())
    print(f"{job.head.name}, K = {job.draft_tokens}: {lengths}", flush=True)
    return measured


def measure(job: Job) -> dict[str, Any]:
    """Serve the head and answer all prompts at every temperature."""
    prompts = [prompt.token_ids for prompt in render(job.target, held_out(job.prompts, job.seed))]
    options = EngineOptions(
        model=job.target, draft=job.head, draft_tokens=job.draft_tokens, seed=job.seed, in_process=True
    )
    with offline_engine(options) as engine:
        return {
            str(temperature): evaluate(
                engine,
                prompts,
                [Sampling(job.max_tokens, temperature, seed=job.seed + index) for index in range(len(prompts))],
            ).model_dump(mode="json")
            for temperature in job.temperatures
        }


if __name__ == "__main__":
    asked, result = map(Path, sys.argv[1:])
    write_json(result, measure(Job.model_validate_json(asked.read_text())))
