# SPDX-License-Identifier: Apache-2.0
"""The end of vLLM's `extract_hidden_states` that writes: one safetensors file a request, on any device.

Read against vLLM 0.32.0 and 0.33.0. The in-tree connector copies through pinned memory on a CUDA stream, which a CPU
build refuses; there the cache lies in ordinary memory already and the copy is a plain one. The engine's worker imports
this file by `kv_connector_module_path`.
"""

from typing import TYPE_CHECKING

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
    PendingSave,
    extract_from_kv_cache,
)

if TYPE_CHECKING:
    _Event = torch.cuda.Event
else:
    _Event = object


class _Done(_Event):
    """Stands where the parent waits for a copy on a stream: the copy was made when it was asked for."""

    def __init__(self) -> None:
        """Nothing to record."""

    def query(self) -> bool:
        """Whether the copy is complete."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""


class HiddenStatesConnector(ExampleHiddenStatesConnector):
    """Stores the hidden states of finished requests, without CUDA too."""

    def _submit_async_write(self, pending: PendingSave) -> None:
        cache = self._kv_cache
        if cache is None or cache.is_cuda:
            super()._submit_async_write(pending)
            return
        if not self._is_tp_rank_zero:
            return
        offsets = torch.arange(self._block_size)
        slots = (torch.tensor(pending.block_ids)[:, None] * self._block_size + offsets).flatten()
        states = extract_from_kv_cache(cache, slots, len(pending.token_ids)).contiguous()
        tensors = {"hidden_states": states, "token_ids": pending.token_ids.clone()}
        done = _Done()
        self._req_copy_events[pending.req_id] = done
        # Writes, then releases the lock on which the reader sleeps.
        self._write_tensors(tensors, done, pending.filename, self._lock_fds.pop(pending.req_id, None))
