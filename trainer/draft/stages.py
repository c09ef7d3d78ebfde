# SPDX-License-Identifier: Apache-2.0
"""Stages that are computed once: a folder named by the hash of everything that shapes its content.

A stage grows in `work/.name-KEY.partial`, which outlives a kill: `make` finds there what it had saved and goes on. Only
a complete one gets its name.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from aerie.artefacts import provenance, sha256_file, sync, write_json


def target_hashes(target: Path) -> dict[str, str]:
    """SHA-256 of the target's files that shape its answers: weights, configuration, tokenizer, chat template."""
    names = ("*.safetensors", "*.json", "*.jinja")
    return {path.name: sha256_file(path) for name in names for path in sorted(target.glob(name))}


def stage(
    work: Path, name: str, settings: Mapping[str, object], inputs: Mapping[str, str], make: Callable[[Path], object]
) -> Path:
    """The folder `work/name-KEY`, made by `make(partial)` unless it exists; KEY hashes settings and inputs.

    `make` is called with a folder that holds what earlier calls, which did not return, left in it: it must write each
    file whole or not at all, and leave nothing behind that is no part of the stage. Of two processes that want the same
    stage, one makes it and the other waits.
    """
    canonical = json.dumps({"settings": dict(settings), "inputs": dict(inputs)}, sort_keys=True, default=str)
    folder = work / f"{name}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"
    partial = folder.with_name(f".{folder.name}.partial")
    while not folder.exists():
        with _held(partial) as ours:
            if ours and not folder.exists():
                make(partial)
                write_json(partial / "provenance.json", provenance(settings, [], inputs))
                _finish(partial, folder)
    return folder


@contextmanager
def _held(partial: Path) -> Iterator[bool]:
    """Lock a folder, making it; false when it was renamed by who held it before."""
    partial.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield partial.exists() and os.fstat(handle).st_ino == partial.stat().st_ino
    finally:
        os.close(handle)


def _finish(partial: Path, folder: Path) -> None:
    for path in [*partial.rglob("*"), partial]:
        # safetensors writes 0600; an artefact is as readable as any other file.
        path.chmod(0o755 if path.is_dir() else 0o644)
        sync(path)
    partial.rename(folder)
    sync(folder.parent)
