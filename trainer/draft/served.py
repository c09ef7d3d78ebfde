# SPDX-License-Identifier: Apache-2.0
"""Acceptance in vLLM while a head is trained: a second process measures an exported head and leaves one JSON file.

That process is `python -P -m aerie.trainer.draft.served JOB PARENT`. The training only starts it and reads its file. No
engine, random number or thread of it lives in the training's process, so the trained weights are the same bit for bit
with and without it. It steps back when both want the processor, and dies with the training.
"""

import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Self

from aerie.artefacts import write_json
from aerie.draft_models.measure import Acceptance, acceptance_of, answer_all
from aerie.draft_models.offline import Answer, EngineOptions, Sampling, offline_engine, render
from aerie.trainer.draft.lifeline import die_with
from aerie.trainer.draft.prompts import load_prompts
from aerie.trainer.draft.recipe import Served
from aerie.trainer.recipe import RecipeError, Schema

JOB, RESULT, LOG, DRAFT = "job.json", "result.json", "log", "draft"
NICENESS = 10
REQUESTS = 8
"""In flight at once."""
# Of a distributed training's launcher; an engine would take them for its own.
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Tau(Schema):
    """Acceptance over some requests, every step weighing the same. Terms: aerie.draft_models.acceptance."""

    length: float
    """Mean acceptance length, the target's own token included: 1 + accepted / steps."""
    length_std: float
    """Standard deviation of the requests' own lengths; 0 for a single request."""
    per_position: tuple[float, ...]
    """Share of steps that accepted the token drafted there."""
    histogram: tuple[int, ...]
    """Entry i: steps that accepted exactly i tokens."""
    steps: int
    drafted: int
    accepted: int
    requests: int
    generated: int

    @classmethod
    def of(cls, acceptance: Acceptance) -> Self:
        """From counts that were checked."""
        pooled = acceptance.pooled
        return cls(
            length=pooled.length,
            length_std=acceptance.length_std,
            per_position=tuple(pooled.per_position),
            histogram=pooled.histogram,
            steps=pooled.steps,
            drafted=pooled.drafted,
            accepted=pooled.accepted,
            requests=len(acceptance.per_request),
            generated=acceptance.generated,
        )


class Measurement(Schema):
    """What `result.json` holds: one head, in the engine."""

    update: int
    draft_tokens: int
    temperature: float
    seed: int
    overall: Tau
    domains: dict[str, Tau]
    """Only of prompts that name a domain."""

    def scalars(self) -> dict[str, float]:
        """Flat, for the journal."""
        positions = {f"served/position/{at}": share for at, share in enumerate(self.overall.per_position, 1)}
        domains = {f"served/domain/{name}": tau.length for name, tau in self.domains.items()}
        return {"served/tau": self.overall.length, "served/tau_std": self.overall.length_std, **positions, **domains}


class Job(Schema):
    """What the second process is asked to do; paths are absolute."""

    target: Path
    draft: Path
    update: int
    settings: Served


class ServedAcceptance:
    """Starts measurements and hands out those that are finished. At most one runs.

    Use it from the main thread: the measuring process ends with the thread that started it.
    """

    def __init__(self, target: Path, settings: Served, folder: Path, log: Callable[[str], None] = print) -> None:
        self._target, self._settings, self._folder, self._log = target.resolve(), settings, folder.resolve(), log
        self._running: tuple[subprocess.Popen[bytes], Path] | None = None
        self._finished: list[Measurement] = []

    @property
    def busy(self) -> bool:
        """Whether a measurement runs, so that `start` would skip the next one."""
        self._reap()
        return self._running is not None

    def draft_folder(self, update: int) -> Path:
        """Where to export a head that is only to be measured; it is removed afterwards."""
        return self._job_folder(update) / DRAFT

    def start(self, head_dir: Path, update: int) -> None:
        """Measure the head in `head_dir`, which must stay as it is meanwhile. Does nothing while another one runs."""
        if self.busy:
            return
        folder = self._job_folder(update)
        job = Job(target=self._target, draft=head_dir.resolve(), update=update, settings=self._settings)
        (folder / RESULT).unlink(missing_ok=True)
        write_json(folder / JOB, job.model_dump(mode="json"))
        self._launch(folder)

    def resume(self, update: int) -> None:
        """Go on after a training that was killed and starts again behind `update`.

        What was measured up to there is handed out once more, an unfinished measurement starts again, and what
        belongs to later updates is forgotten: the training will come to them again.
        """
        for folder in sorted(self._folder.glob("update-*")):
            if int(folder.name.removeprefix("update-")) > update:
                shutil.rmtree(folder)
            elif (folder / RESULT).exists():
                self._finished.append(Measurement.model_validate_json((folder / RESULT).read_text()))
            elif (folder / JOB).exists() and (folder / DRAFT).exists() and not self.busy:
                self._launch(folder)

    def collect(self) -> list[Measurement]:
        """Measurements that were finished since the last call; never waits."""
        self._reap()
        finished, self._finished = self._finished, []
        return finished

    def wait(self) -> list[Measurement]:
        """Wait for the one that runs, then `collect`."""
        if self._running is not None:
            self._running[0].wait()
        return self.collect()

    def close(self) -> None:
        """End the one that runs; its result is lost."""
        if self._running is not None:
            self._running[0].kill()
            self._running[0].wait()
            self._running = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _job_folder(self, update: int) -> Path:
        return self._folder / f"update-{update:08}"

    def _launch(self, folder: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
        command = [sys.executable, "-P", "-m", __spec__.name, str(folder / JOB), str(os.getpid())]
        with (folder / LOG).open("wb") as log:
            process = subprocess.Popen(
                command, env=kept, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self._running = process, folder

    def _reap(self) -> None:
        if self._running is None or self._running[0].poll() is None:
            return
        (process, folder), self._running = self._running, None
        if process.returncode == 0:
            self._finished.append(Measurement.model_validate_json((folder / RESULT).read_text()))
        else:
            update = int(folder.name.removeprefix("update-"))
            reason = _reason(process.returncode, folder / LOG)
            self._log(f"update {update}: acceptance was not measured, the training goes on: {reason}")
        shutil.rmtree(folder / DRAFT, ignore_errors=True)


def _reason(status: int, log: Path) -> str:
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}; see {log}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else f'status {status}'} (see {log})"


def measure(job: Job) -> Measurement:
    """Serve the head and count. Raises RecipeError, AcceptanceError, and what vLLM raises."""
    settings = job.settings
    chats = load_prompts(settings.prompts)
    rendered = [ids for _, ids in render(job.target, chats)]
    options = _options(job, max(map(len, rendered)))
    room = options.max_model_len or 0
    kept = [
        (chat.domain, ids) for chat, ids in zip(chats, rendered, strict=True) if len(ids) + settings.max_tokens <= room
    ]
    if not kept:
        raise RecipeError(f"served.max_tokens: no prompt leaves room for {settings.max_tokens} of {room} positions")
    sampling = [
        Sampling(settings.max_tokens, settings.temperature, seed=settings.seed + index) for index in range(len(kept))
    ]
    with offline_engine(options) as engine:
        answers = answer_all(engine, [ids for _, ids in kept], sampling)
    by_domain: dict[str, list[Answer]] = {}
    for (domain, _), answer in zip(kept, answers, strict=True):
        # An answer of one token was never drafted for.
        if domain is not None and answer.acceptance is not None and answer.acceptance.steps:
            by_domain.setdefault(domain, []).append(answer)
    return Measurement(
        update=job.update,
        draft_tokens=settings.draft_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        overall=Tau.of(acceptance_of(answers)),
        domains={name: Tau.of(acceptance_of(by_domain[name])) for name in sorted(by_domain)},
    )


def _options(job: Job, longest_prompt: int) -> EngineOptions:
    """An engine no larger than these prompts need: the training may hold the rest of the memory."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(job.target).get_text_config()
    wanted = longest_prompt + job.settings.max_tokens + job.settings.draft_tokens + 1
    length = min(wanted, config.max_position_embeddings)
    heads = config.num_attention_heads
    width = (getattr(config, "num_key_value_heads", None) or heads) * (
        getattr(config, "head_dim", None) or config.hidden_size // heads
    )
    # Keys and values in four bytes, one more layer for the head. A request that had to make room for another would
    # be answered in two pieces, and its counts no longer explain its tokens.
    cache = 2 * 4 * width * (config.num_hidden_layers + 1) * (length + 128) * REQUESTS
    return EngineOptions(
        model=job.target,
        draft=job.draft,
        draft_tokens=job.settings.draft_tokens,
        max_model_len=length,
        max_num_seqs=REQUESTS,
        kv_cache_bytes=max(cache, 2**28),
        seed=job.settings.seed,
        in_process=True,
    )


def main(job_path: str, parent: str) -> None:
    """The second process: the result beside the job, or the reason as the log's last line and status 1."""
    die_with(int(parent))
    os.nice(NICENESS)
    path = Path(job_path)
    try:
        measurement = measure(Job.model_validate_json(path.read_text()))
    except Exception as error:
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    write_json(path.with_name(RESULT), measurement.model_dump(mode="json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
