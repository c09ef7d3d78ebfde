# SPDX-License-Identifier: Apache-2.0
"""Stages that are computed once: a folder named by the hash of everything that shapes its content."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from aerie.artefacts import output_directory, provenance, sha256_file, write_json


def target_hashes(target: Path) -> dict[str, str]:
    """SHA-256 of the target's files that shape its answers: weights, configuration, tokenizer, chat template."""
    names = ("*.safetensors", "*.json", "*.jinja")
    return {path.name: sha256_file(path) for name in names for path in sorted(target.glob(name))}


def stage(
    work: Path, name: str, settings: Mapping[str, object], inputs: Mapping[str, str], make: Callable[[Path], None]
) -> Path:
    """The folder `work/name-KEY`, made by `make(staging)` unless it exists; KEY hashes settings and inputs."""
    canonical = json.dumps({"settings": dict(settings), "inputs": dict(inputs)}, sort_keys=True, default=str)
    folder = work / f"{name}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"
    if not folder.exists():
        with output_directory(folder) as staging:
            make(staging)
            write_json(staging / "provenance.json", provenance(settings, [], inputs))
    return folder
