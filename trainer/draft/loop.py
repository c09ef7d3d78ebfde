# SPDX-License-Identifier: Apache-2.0
"""The optimisation: AdamW, cosine schedule, clipping, a checkpoint from which a killed training goes on bit for bit.

A training has a supervised phase and, if the recipe asks for it, an on-policy one with a schedule of its own (loss.py
says what differs). At the end of every epoch the head is evaluated on the validation answers; the weights of the epoch
with the longest simulated acceptance are kept.
"""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aerie.artefacts import write_atomic
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft import lora
from aerie.trainer.draft.data import Batch, Captured, Source
from aerie.trainer.draft.evaluate import evaluate
from aerie.trainer.draft.loss import Outcome, row_counts
from aerie.trainer.draft.objective import Objective, optimizer_for
from aerie.trainer.draft.parallel import Processes, moved
from aerie.trainer.draft.phases import Phase, phases_of, schedule
from aerie.trainer.draft.recipe import Training
from aerie.trainer.draft.target import Teacher
from aerie.trainer.errors import TrainerError
from aerie.trainer.recipe import RecipeError

Entry = dict[str, Any]


class TrainingError(TrainerError, RuntimeError):
    """The training cannot go on; what was saved stays."""


@dataclass
class State:
    """Everything that changes."""

    head: Eagle3Head
    update: int = 0
    phase: int = 0
    epoch: int = 0
    """Within the phase."""
    done: int = 0
    """Updates of this epoch."""
    loss: float = 0.0
    """Their sum."""
    history: list[Entry] = field(default_factory=list)
    """One entry an epoch."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the epoch with the longest simulated acceptance."""

    def progress(self) -> dict[str, Any]:
        """All but the weights, as a checkpoint holds it."""
        names = ("update", "phase", "epoch", "done", "loss", "history", "best")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Update:
    """What one update did, summed over processes but for `hits` and `seen`, which are this one's."""

    number: int
    """Counted from 1."""
    phase: str
    epoch: int
    loss: float
    learning_rate: float
    hits_S: list[int]
    seen_S: list[int]
    tokens: int
    seconds: float


class Watcher(Protocol):
    """Something that looks at a training and does not change it; called on the first process only."""

    def started(self, update: int) -> None:
        """Before the first update, behind `update` of an earlier run."""

    def updated(self, update: Update) -> None:
        """After an update."""

    def epoch_ended(self, entry: Entry) -> None:
        """After an epoch's evaluation."""

    def snapshot(self, update: int, head: Eagle3Head) -> None:
        """Every `snapshot_every` updates; `head` has all of its weights, with LoRA's deltas merged."""


class Trainer:
    """One training; `train` below runs it."""

    def __init__(
        self, head: Eagle3Head, teacher: Teacher, training: Training, checkpoint: Path, processes: Processes
    ) -> None:
        self.training, self.checkpoint, self.processes, self.teacher = training, checkpoint, processes, teacher
        self.state = State(head)
        if not training.train_lm_head:
            head.lm_head.requires_grad_(False)
        if training.lora is not None:
            if processes.sharding == "full":
                raise RecipeError("training.lora: low-rank deltas need no sharding; set training.sharding to none")
            lora.add(head, training.lora, training.seed)
        objective = Objective(head, moved(teacher, processes.device), training)
        if training.compile:
            objective.compile(dynamic=True)
        self.module = processes.wrap(objective)
        self.optimizer = optimizer_for(head, training)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if not self.processes.agree(self.checkpoint.exists()):
            return
        saved: dict[str, Any] = {"model": {}, "optimizer": {}, "progress": None}
        if self.processes.first:
            saved = torch.load(self.checkpoint, weights_only=True)
        for name, value in self.processes.agree(saved["progress"]).items():
            setattr(self.state, name, value)
        self.processes.scatter(self.module, self.optimizer, saved)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all. Raises TrainingError when the disk is full."""
        saved = self.processes.gather(self.module, self.optimizer)
        if self.processes.first:
            buffer = io.BytesIO()
            torch.save({**saved, "progress": self.state.progress()}, buffer)
            try:
                write_atomic(self.checkpoint, buffer.getvalue())
            except OSError as error:
                raise TrainingError(
                    f"work: the checkpoint of update {self.state.update} cannot be written ({error.strerror}); make "
                    f"room and run again: the training goes on from the checkpoint before"
                ) from error

    def whole_head(self) -> Eagle3Head:
        """The head with all of its weights, deltas merged, for the first process; all processes must call."""
        head = self.state.head
        if self.processes.sharding == "none":
            return lora.merged(head)
        weights = self.processes.gather(self.module, None)["model"]
        whole = Eagle3Head(head.config, head.embed_WH)
        if self.processes.first:
            whole.load_state_dict({name.removeprefix("head."): tensor for name, tensor in weights.items()})
        return whole.to(self.processes.device)

    def update(self, phase: Phase, data: Source, documents: list[list[int]], rate: float) -> Update:
        """One step of the optimiser over the batches of `documents`."""
        began, training, processes = time.perf_counter(), self.training, self.processes
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        mine = processes.share(documents)
        # A process without a batch of its own computes one that counts for nothing, to keep step with the others.
        batches = [moved(data.batch(documents[0] if one is None else one), processes.device) for one in mine]
        counts = [row_counts(self.state.head, batch, training.steps) for batch in batches]
        counts_S = sum(
            (one for one, own in zip(counts, mine, strict=True) if own is not None), torch.zeros_like(counts[0])
        )
        counts_S = processes.total(counts_S.clone())
        loss, hits_S, seen_S = torch.zeros((), device=processes.device), [0] * training.steps, [0] * training.steps
        for index, (batch, own) in enumerate(zip(batches, mine, strict=True)):
            outcome = self._backward(batch, counts_S, phase, last=index + 1 == len(batches), counted=own is not None)
            if own is not None:
                loss += outcome.loss.detach()
                _add(hits_S, outcome.hits_SBR)
                _add(seen_S, outcome.chained_SBR)
        loss = processes.total(loss)
        self._step(loss)
        tokens = int(processes.total(torch.tensor(float(sum(batch.tokens for batch in batches)))).item())
        state = self.state
        state.update, state.done, state.loss = state.update + 1, state.done + 1, state.loss + loss.item()
        seconds = time.perf_counter() - began
        return Update(state.update, phase.name, state.epoch, loss.item(), rate, hits_S, seen_S, tokens, seconds)

    def _backward(self, batch: Batch, counts_S: Tensor, phase: Phase, last: bool, counted: bool) -> Outcome:
        device = self.processes.device.type
        # Masters, optimiser and the residual stream stay float32; only products are bf16.
        autocast = torch.autocast(device, torch.bfloat16, enabled=self.training.precision == "bfloat16")
        with self.processes.gradients_stay(self.module, last):
            with autocast:
                outcome: Outcome = self.module(batch, counts_S, phase.name == "on_policy")
            # Data parallelism averages over processes, but `counts_S` divides by the rows of all of them.
            (outcome.loss * (self.processes.count if counted else 0)).backward()
        return outcome

    def _step(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            update, every = self.state.update, self.training.checkpoint_every
            raise TrainingError(
                f"update {update}: the loss is {loss.item()}; lower training.learning_rate and run again: "
                f"the last checkpoint is from update {update - update % every} or later"
            )
        nn.utils.clip_grad_norm_([one for one in self.module.parameters() if one.requires_grad], self.training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def close_epoch(self, phase: Phase, validation: Captured) -> Entry:
        """Evaluate, note the result, keep the weights when they are the best so far; all processes must call."""
        head, training, state = self.whole_head(), self.training, self.state
        entry: Entry = {}
        if self.processes.first:
            teacher = moved(self.teacher, self.processes.device)
            acceptance = evaluate(
                head, teacher, validation, training.steps, training.step_decay, 2 * training.batch_rows
            )
            loss = state.loss / max(1, state.done)
            entry = {"epoch": len(state.history), "phase": phase.name, "update": state.update, "training_loss": loss}
            entry |= acceptance.as_json()
            if all(entry["length_K"][-1] > earlier["length_K"][-1] for earlier in state.history):
                state.best = {name: tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}
        state.history.append(self.processes.agree(entry))
        state.epoch, state.done, state.loss = state.epoch + 1, 0, 0.0
        return state.history[-1]

    def finish(self) -> None:
        """Leave the weights to be exported in `state.head`, whole and without deltas; all processes must call."""
        state = self.state
        whole = self.whole_head()
        if self.training.keep == "best" and state.best:
            whole.load_state_dict(state.best)
        if whole is not state.head and self.processes.sharding == "none":
            lora.remove(state.head)
            state.head.load_state_dict(whole.state_dict())
        elif whole is not state.head:
            state.head = whole


def waited_long_enough(history: Sequence[Entry], phase: str, patience: int | None) -> bool:
    """Whether the last `patience` epochs of the phase were no better than one before them."""
    lengths: list[float] = [entry["length_K"][-1] for entry in history if entry["phase"] == phase]
    if patience is None or len(lengths) <= patience:
        return False
    best: float = max(lengths[:-patience])
    return max(lengths[-patience:]) <= best


def train(
    head: Eagle3Head,
    teacher: Teacher,
    data: Source,
    validation: Captured,
    training: Training,
    checkpoint: Path,
    stop_after: int | None = None,
    watchers: Sequence[Watcher] = (),
    snapshot_every: int | None = None,
) -> State:
    """Train `head` in place, from `checkpoint` if it exists. `stop_after` ends early, for tests of resuming.

    Raises TrainingError for a loss that is not a number and for a full disk, RecipeError for what cannot be combined.
    """
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    trainer = Trainer(head, teacher, training, checkpoint, Processes(training.accumulate, training.sharding))
    trainer.resume()
    state, phases = trainer.state, phases_of(training, data)
    seen = watchers if trainer.processes.first else ()
    for watcher in seen:
        watcher.started(state.update)
    while state.phase < len(phases):
        phase = phases[state.phase]
        if state.epoch == len(phase.plans) or waited_long_enough(state.history, phase.name, training.patience):
            state.phase, state.epoch = state.phase + 1, 0
            continue
        before = sum(map(len, phase.plans[: state.epoch]))
        for documents in phase.plans[state.epoch][state.done :]:
            share = schedule(before + state.done, phase.updates, training.warmup)
            update = trainer.update(phase, data, documents, phase.learning_rate * share)
            for watcher in seen:
                watcher.updated(update)
            if snapshot_every is not None and state.update % snapshot_every == 0:
                whole = trainer.whole_head()
                for watcher in seen:
                    watcher.snapshot(state.update, whole)
            if state.update == stop_after:
                return state
            if state.update % training.checkpoint_every == 0:
                trainer.save()
        entry = trainer.close_epoch(phase, validation)
        for watcher in seen:
            watcher.epoch_ended(entry)
        trainer.save()
    trainer.finish()
    return state


def _add(totals_S: list[int], marks_SBR: Tensor) -> None:
    for step, count in enumerate(marks_SBR.flatten(1).sum(1).tolist()):
        totals_S[step] += count
