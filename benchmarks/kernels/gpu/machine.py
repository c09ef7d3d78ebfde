# SPDX-License-Identifier: Apache-2.0
"""The GPU a result is of: whether there is one, its driver, clocks and temperature, and its two roofs."""

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Mapping

import torch
from pydantic import JsonValue

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.kernels.gpu.figures import issue_roof_gbs
from aerie.benchmarks.kernels.gpu.shapes import BYTES_PER_WEIGHT
from aerie.benchmarks.points import Record
from aerie.kernels.int4_gemm.tuning import BUCKETS

SMI = shutil.which("nvidia-smi")
FIELDS = (
    "driver_version",
    "temperature.gpu",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.draw",
    "power.limit",
)
"""What nvidia-smi is asked for: degrees Celsius, MHz, watts."""


def missing() -> list[str]:
    """What this machine lacks to run the benchmark."""
    lacks = []
    if torch.version.cuda is None and torch.version.hip is None:
        lacks.append(f"a torch with CUDA (this is {torch.__version__}; requirements/cuda.lock has one)")
    elif not torch.cuda.is_available():
        lacks.append("a GPU that torch sees (does `nvidia-smi` list one?)")
    if importlib.util.find_spec("triton") is None:
        lacks.append("Triton")
    return lacks


def need_gpu() -> None:
    """Raise BenchmarkError, naming what is missing, where there is nothing to measure."""
    lacks = missing()
    if lacks:
        raise BenchmarkError(f"this times Triton kernels on a GPU, and here is missing: {', '.join(lacks)}")


def parse_smi(line: str) -> dict[str, JsonValue]:
    """One line of nvidia-smi's CSV by field; a number where it is one, None where the GPU does not tell."""
    found: dict[str, JsonValue] = {}
    for name, text in zip(FIELDS, (part.strip() for part in line.split(",")), strict=True):
        if name == "driver_version":
            found[name] = text
            continue
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = None
    return found


def smi(uuid: str) -> dict[str, JsonValue]:
    """Driver, temperature, clocks and power now; empty without nvidia-smi."""
    if SMI is None:
        return {}
    command = [SMI, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits", f"--id=GPU-{uuid}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return parse_smi(done.stdout.splitlines()[0]) if done.returncode == 0 and done.stdout else {}


def state() -> dict[str, JsonValue]:
    """Of the GPU at this moment."""
    return smi(str(torch.cuda.get_device_properties().uuid))


def highest_clock(found: Mapping[str, JsonValue]) -> float | None:
    """MHz that the multiprocessors may reach, of what `gpu` and `state` tell; None where nvidia-smi does not."""
    before = found.get("before")
    clock = before.get("clocks.max.sm") if isinstance(before, dict) else None
    return clock if isinstance(clock, float) else None


def gpu() -> dict[str, JsonValue]:
    """What does not change: name, architecture, multiprocessors, caches, memory, CUDA's version."""
    found = torch.cuda.get_device_properties()
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "l2_mib": found.L2_cache_size / 2**20,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }


def issue_roofs(clock_mhz: float) -> Iterator[Record]:
    """For each bucket of M that decoding uses, what instruction issue allows at this clock.

    The instructions of a weight are counted in what this Triton compiles for the architecture's table of cuts.
    """
    from aerie.benchmarks.kernels.int4_gemm import TABLES, Case

    found = torch.cuda.get_device_properties()
    architecture = 10 * found.major + found.minor
    if architecture not in TABLES:
        return
    for greatest in BUCKETS:
        case = Case(architecture, str(greatest))
        per_weight = case.build().per_weight(case.weights)
        gbs = issue_roof_gbs(found.multi_processor_count, clock_mhz, per_weight, BYTES_PER_WEIGHT)
        yield {"kind": "issue_roof", "bucket": greatest, "per_weight": per_weight, "clock_mhz": clock_mhz, "gbs": gbs}
