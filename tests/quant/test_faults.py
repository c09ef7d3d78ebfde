# SPDX-License-Identifier: Apache-2.0
"""`aerie quantize` killed, and on a disk that is full: nothing half-written, and the same bytes in the end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from aerie.artefacts import sha256_tree

AERIE = (sys.executable, "-P", "-m", "aerie")
VOCAB, LAYERS, HIDDEN, INNER = 96, 6, 64, 192
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
SaveModel = Callable[..., Path]


@dataclass(frozen=True)
class Command:
    """`aerie quantize MODEL OUT --recipe FILE` in a process of its own."""

    model: Path
    recipe: Path
    inside: tuple[str, ...] = ()
    """What the process is started by."""

    def start(self, out: Path) -> subprocess.Popen[str]:
        command = [*self.inside, *AERIE, "quantize", str(self.model), str(out), "--recipe", str(self.recipe)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, out: Path) -> tuple[int, str]:
        """Exit status, and what was said on standard error."""
        process = self.start(out)
        _, said = process.communicate()
        return process.returncode, said


def write_inputs(model: Path, method: str) -> Command:
    """Gives a model a tokenizer, and a recipe with text beside it."""
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCAB)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(model)
    documents = [[(7 * row + 3 * place) % VOCAB for place in range(24)] for row in range(6)]
    text, recipe = model.with_name("text.jsonl"), model.with_name("recipe.yaml")
    text.write_text("".join(json.dumps({"prompt_ids": one[:4], "answer_ids": one[4:]}) + "\n" for one in documents))
    calibration = {"source": "file", "path": str(text), "held_out": str(text)}
    settings = {"method": method, "group_size": 32, "iterations": 20, "batch_documents": 3, "min_expert_tokens": 1}
    recipe.write_text(json.dumps(settings | {"calibration": calibration}))  # which is YAML too
    return Command(model, recipe)


class Disk:
    """A file system of a given size, in a name space of its own that only `inside` commands are in."""

    def __init__(self, folder: Path, size: str) -> None:
        folder.mkdir()
        script = 'mount -t tmpfs -o size="$1" none "$0" && echo mounted && cat'
        self._holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script, str(folder), size], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        self.mounted = self._holder.stdout.readline() == b"mounted\n"
        self.folder = folder
        self.seen = Path(f"/proc/{self._holder.pid}/root{folder}")
        """The folder, looked at from outside."""
        self.inside = ("nsenter", "-t", str(self._holder.pid), "-U", "-m", "--preserve-credentials")

    def grow(self, size: str) -> None:
        subprocess.run([*self.inside, "mount", "-o", f"remount,size={size}", str(self.folder)], check=True)

    def close(self) -> None:
        self._holder.communicate()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    """`disk(size)`; skips where ordinary users cannot mount."""
    if not (shutil.which("unshare") and shutil.which("nsenter")):
        pytest.skip("util-linux is not installed")
    made: list[Disk] = []

    def make(size: str) -> Disk:
        made.append(Disk(tmp_path / "disk", size))
        if not made[0].mounted:
            pytest.skip("a small file system cannot be mounted here")
        return made[0]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(("kind", "method"), [("dense", "awq"), ("moe", "autoround")])
def test_a_killed_run_goes_on_to_the_same_bytes(save_model: SaveModel, tmp_path: Path, kind: str, method: str) -> None:
    changes: dict[str, Any] = {"mixture": True, **EXPERTS} if kind == "moe" else {}
    command = write_inputs(save_model(num_hidden_layers=LAYERS, **changes), method)
    status, said = command.run(tmp_path / "whole")
    assert status == 0, said
    out, parts = tmp_path / "int4", tmp_path / ".int4.parts"
    process = command.start(out)
    while not (parts / "layer_00000.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert 1 <= len(list(parts.glob("layer_*.safetensors"))) < LAYERS
    assert command.run(out)[0] == 0
    assert sha256_tree(out) == sha256_tree(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int4", "model", "recipe.yaml", "text.jsonl", "whole"]


@pytest.mark.parametrize(
    ("size", "finished", "unwritten"),
    [("400k", 1, r"\.int4\.parts/\w+\.safetensors"), ("1350k", LAYERS, "int4")],
    ids=["as-layers-are-written", "as-they-are-put-together"],
)
def test_a_full_disk_is_said_and_a_rerun_with_space_finishes(
    save_model: SaveModel, tmp_path: Path, disk: Callable[[str], Disk], size: str, finished: int, unwritten: str
) -> None:
    small = disk(size)
    command = write_inputs(save_model(num_hidden_layers=LAYERS, hidden_size=128, intermediate_size=384), "rtn")
    source = sha256_tree(command.model)
    inside = replace(command, inside=small.inside)
    status, said = inside.run(small.folder / "int4")
    assert status == 2
    path = f"{re.escape(str(small.folder))}/{unwritten}"
    message = (
        rf"aerie: error: OUT {path}: cannot be written \(.*No space left.*\); free space there, then run again: .*"
    )
    assert re.fullmatch(message, said.splitlines()[-1])
    assert [path.name for path in small.seen.iterdir()] == [".int4.parts"]
    kept = {path.name for path in (small.seen / ".int4.parts").iterdir()} - {"identity.json", "rest.safetensors"}
    layers = {f"layer_{index:05}.safetensors" for index in range(finished)}
    assert kept == layers | {f"states_{finished:05}.safetensors"}
    small.grow("16M")
    status, said = inside.run(small.folder / "int4")
    assert status == 0, said
    assert [path.name for path in small.seen.iterdir()] == ["int4"]
    assert command.run(tmp_path / "whole")[0] == 0
    assert sha256_tree(small.seen / "int4") == sha256_tree(tmp_path / "whole")
    assert sha256_tree(command.model) == source
