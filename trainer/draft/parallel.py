# SPDX-License-Identifier: Apache-2.0
"""The processes of one training: who holds which batch, how gradients meet, how the whole state is saved.

`accelerate launch` starts the processes and accelerate's PartialState joins them, on GPUs (NCCL) and CPUs (gloo) alike.
Sharding is torch's FSDP2 itself: accelerate turns it on for accelerators only, and what no CPU can run no test here
could hold. The head is one layer, so it is one FSDP unit: its masters, gradients and optimiser states are shared out,
its weights are whole while a batch is computed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from aerie.trainer.recipe import RecipeError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Tensors = TypeVar("Tensors", bound=DataclassInstance)
    Value = TypeVar("Value")
else:
    Tensors, Value = TypeVar("Tensors"), TypeVar("Value")

Sharding = Literal["none", "full"]
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def moved(tensors: Tensors, device: torch.device) -> Tensors:
    """A dataclass of tensors on another device; itself when it is there."""
    names = [one.name for one in fields(tensors) if isinstance(getattr(tensors, one.name), Tensor)]
    if all(getattr(tensors, name).device == device for name in names):
        return tensors
    return replace(tensors, **{name: getattr(tensors, name).to(device, non_blocking=True) for name in names})


class Processes:
    """The group this process belongs to; alone when nothing launched more."""

    def __init__(self, accumulate: int, sharding: Sharding) -> None:
        self._state = PartialState(cpu=not torch.cuda.is_available())
        self.count: int = self._state.num_processes
        self.rank: int = self._state.process_index
        self.device: torch.device = self._state.device
        self.sharding: Sharding = sharding if self.count > 1 else "none"
        if accumulate % self.count:
            raise RecipeError(
                f"training.accumulate: {accumulate} batches of an update cannot be shared by {self.count} processes; "
                f"use a multiple of {self.count}"
            )

    @property
    def first(self) -> bool:
        """Whether this process evaluates, saves and speaks."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, ready to be called by every process on its own batches; gradients are averaged over processes."""
        module.to(self.device)
        if self.count == 1:
            return module
        if self.sharding == "full":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            fully_shard(module, mesh=init_device_mesh(self.device.type, (self.count,)))
            return module
        # The embeddings are a buffer, the same everywhere and never changed.
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)

    def share(self, batches: list[Value]) -> list[Value | None]:
        """What this process computes of an update; None keeps step with processes that have a batch more."""
        rounds = -(-len(batches) // self.count)
        mine: list[Value | None] = [*batches[self.rank :: self.count]]
        return mine + [None] * (rounds - len(mine))

    @contextmanager
    def gradients_stay(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Within this block gradients pile up on each process; the `last` batch of an update brings them together."""
        from torch.distributed.fsdp import FSDPModule

        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)
            yield
        elif isinstance(module, nn.parallel.DistributedDataParallel) and not last:
            with module.no_sync():
                yield
        else:
            yield

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over processes."""
        if self.count > 1:
            tensor = tensor.to(self.device)
            torch.distributed.all_reduce(tensor)
        return tensor

    def agree(self, value: Value) -> Value:
        """What the first process says."""
        return cast(Value, broadcast_object_list([value])[0]) if self.count > 1 else value

    def gather(self, module: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
        """Whole weights and optimiser states on the first process's CPU, by parameter name; all processes must call."""
        saved: dict[str, Any] = {"model": get_model_state_dict(module, options=_FULL)}
        if optimizer is not None:
            saved["optimizer"] = get_optimizer_state_dict(module, optimizer, options=_FULL)
        return saved

    def scatter(self, module: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
        """Load what `gather` returned on the first process; the others may pass empty mappings."""
        options = _SPREAD if self.count > 1 else StateDictOptions(full_state_dict=True)
        set_model_state_dict(module, saved["model"], options=options)
        set_optimizer_state_dict(module, optimizer, saved["optimizer"], options=options)
