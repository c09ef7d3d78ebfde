# SPDX-License-Identifier: Apache-2.0
"""The optimisation: AdamW, cosine schedule, clipping, a checkpoint from which a killed training goes on bit for bit."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aerie.artefacts import write_atomic
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.data import Batch, Captured, plan
from aerie.trainer.draft.evaluate import Acceptance, evaluate
from aerie.trainer.draft.initial import GATE, OUTPUT
from aerie.trainer.draft.loss import Outcome, training_time_test
from aerie.trainer.draft.progress import TrainingProgress
from aerie.trainer.draft.recipe import Training
from aerie.trainer.draft.target import Teacher


class TrainingError(RuntimeError):
    """The training cannot go on; what was saved stays."""


@dataclass
class State:
    """Everything that changes."""

    head: Eagle3Head
    optimizer: torch.optim.Optimizer
    update: int = 0
    history: list[dict[str, object]] = field(default_factory=list)
    """One entry an epoch."""

    def save(self, path: Path) -> None:
        """Write atomically."""
        import io

        buffer = io.BytesIO()
        parts = {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**parts, "update": self.update, "history": self.history}, buffer)
        write_atomic(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        """Continue from what `save` wrote."""
        saved = torch.load(path, weights_only=True)
        self.head.load_state_dict(saved["head"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.update, self.history = saved["update"], saved["history"]


def optimizer_for(head: Eagle3Head, training: Training) -> torch.optim.Optimizer:
    """AdamW; norms are not decayed, and a gated head's output projection moves as a plain head's would.

    That projection starts doubled against a gate of 1/2 (initial.py). Twice the step and half the decay make it the
    plain head's projection in other units, so both follow the same path until the gate says otherwise.
    """
    doubled = 2.0 if head.config.gate != "none" else 1.0
    scales = {OUTPUT: (doubled, 1 / doubled), GATE: (training.gate_learning_rate, 1.0)}
    groups: list[dict[str, Any]] = []
    for name, parameter in head.named_parameters():
        rate, decay = scales.get(name, (1.0, 1.0))
        decay *= training.weight_decay if parameter.dim() > 1 else 0.0
        groups.append({"params": [parameter], "scale": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas, fused=True)


def schedule(update: int, updates: int, warmup: float) -> float:
    """Share of the peak learning rate for an update: linear rise, then a cosine to zero."""
    rising = max(1, round(warmup * updates))
    if update < rising:
        return (update + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (update - rising) / max(1, updates - rising)))


def train(
    head: Eagle3Head,
    teacher: Teacher,
    data: Captured,
    validation: Captured,
    training: Training,
    checkpoint: Path,
    stop_after: int | None = None,
) -> State:
    """Train `head` in place, from `checkpoint` if it exists. `stop_after` ends early, for tests of resuming."""
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    state = State(head, optimizer_for(head, training))
    if checkpoint.exists():
        state.load(checkpoint)
    # Padding makes epochs differ by a batch or two; the schedule must know their sum from the start.
    plans = [plan(data.row_counts, training.batch_rows, training.seed, epoch) for epoch in range(training.epochs)]
    updates, done = sum(map(len, plans)), 0
    with TrainingProgress(updates, state.update) as progress:
        for epoch, batches in enumerate(plans):
            for indices in batches:
                done += 1
                if done <= state.update:
                    continue
                began = time.perf_counter()
                batch = data.batch(indices)
                outcome = _update(state, teacher, batch, training, schedule(state.update, updates, training.warmup))
                state.update += 1
                progress.advance(epoch, outcome, batch, time.perf_counter() - began)
                if state.update == stop_after:
                    return state
                if state.update % training.checkpoint_every == 0:
                    state.save(checkpoint)
            if len(state.history) == epoch:
                _close_epoch(state, teacher, validation, training, progress.describe_epoch)
                state.save(checkpoint)
    return state


def _update(state: State, teacher: Teacher, batch: Batch, training: Training, rate: float) -> Outcome:
    for group in state.optimizer.param_groups:
        group["lr"] = training.learning_rate * rate * group["scale"]
    with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bfloat16"):
        outcome = training_time_test(state.head, teacher, batch, training.steps, training.step_decay)
    if not torch.isfinite(outcome.loss):
        raise TrainingError(
            f"update {state.update}: the loss is {outcome.loss.item()}; lower training.learning_rate and run again: "
            f"the last checkpoint is from update {state.update - state.update % training.checkpoint_every} or later"
        )
    outcome.loss.backward()
    nn.utils.clip_grad_norm_(state.head.parameters(), training.clip)
    state.optimizer.step()
    state.optimizer.zero_grad()
    return outcome


def _close_epoch(
    state: State, teacher: Teacher, validation: Captured, training: Training, show: Callable[[Acceptance], None]
) -> None:
    acceptance = evaluate(state.head, teacher, validation, training.steps, training.step_decay, 2 * training.batch_rows)
    state.history.append({"epoch": len(state.history), "update": state.update, **acceptance.as_json()})
    show(acceptance)
