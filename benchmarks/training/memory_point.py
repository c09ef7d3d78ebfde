# SPDX-License-Identifier: Apache-2.0
"""One forward and backward pass in a process of its own; prints its peak memory. Called by memory.py.

The high-water mark of the process (VmHWM), reset after a small pass has loaded every library and scratch buffer, minus
what the process held then. Linux only.
"""

import json
import re
from pathlib import Path
from typing import Annotated

import torch
import typer

from aerie.benchmarks.training.problem import DECAY
from aerie.draft_models.contract import DraftConfig
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.data import padded
from aerie.trainer.draft.initial import initial_head
from aerie.trainer.draft.loss import training_time_test
from aerie.trainer.draft.shards import Document
from aerie.trainer.draft.target import Teacher

WARM_UP = 24


def demo_config(draft_vocab_size: int) -> DraftConfig:
    """A plain head of the demo's shape, with room for the longest document measured."""
    return DraftConfig(
        hidden_size=256,
        target_hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=4096,
        draft_vocab_size=draft_vocab_size,
        aux_hidden_state_layer_ids=(2, 12, 21),
        gate="none",
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        max_position_embeddings=8192,
    )


def document_of(config: DraftConfig, length: int) -> Document:
    """Random states, every token supervised: memory does not depend on the values."""
    draw = torch.Generator().manual_seed(length)
    states_LAH = torch.randn(length, len(config.aux_hidden_state_layer_ids) + 1, config.hidden_size, generator=draw)
    ids_L, choices_L = (torch.randint(0, config.vocab_size, (length,), generator=draw).int() for _ in range(2))
    return Document(states_LAH.bfloat16(), ids_L, torch.ones(length, dtype=torch.bool), choices_L)


def status(name: str) -> int:
    """Bytes of a field of /proc/self/status."""
    match = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {name}")
    return int(match[1]) * 1024


class Pass:
    """Forward and backward of either trainer over one document."""

    def __init__(self, side: str, config: DraftConfig) -> None:
        draw = torch.Generator().manual_seed(0)
        embed_WH = torch.randn(config.vocab_size, config.hidden_size, generator=draw)
        self.teacher = Teacher(embed_WH, embed_WH, torch.ones(config.hidden_size), config.rms_norm_eps)
        self.head: Eagle3Head = initial_head(config, self.teacher, torch.arange(config.draft_vocab_size), seed=0)
        self.side = side
        if side == "speculators":
            from aerie.benchmarks.training import peer

            self.peer, self.model = peer, peer.model_of(self.head, self.teacher)

    def run(self, document: Document, steps: int) -> None:
        """Leaves the gradients in place, as a trainer would."""
        if self.side == "ours":
            loss = training_time_test(self.head, self.teacher, padded([document]), steps, DECAY).loss
        else:
            row = self.peer.row([self.peer.sample(document)], len(document.token_ids) - 1)
            loss = self.peer.loss(self.model, row, steps, DECAY)
        loss.backward()


def main(
    side: Annotated[str, typer.Argument()],
    length: Annotated[int, typer.Argument(min=WARM_UP)],
    steps: Annotated[int, typer.Argument(min=1)],
) -> None:
    """Measure one point."""
    torch.set_num_threads(1)
    config = demo_config(2048)
    one, document = Pass(side, config), document_of(config, length)
    one.run(document_of(config, WARM_UP), steps)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    one.run(document, steps)
    typer.echo(json.dumps({"peak_bytes": status("VmHWM") - before}))


if __name__ == "__main__":
    typer.run(main)
