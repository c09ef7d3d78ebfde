# SPDX-License-Identifier: Apache-2.0
"""Compile Triton kernels for a GPU that is not there, and count what comes out.

Everything needed comes with Triton: its compiler, NVIDIA's assembler and disassembler. What is found holds for this
version of them; how long a kernel takes, how many programs a multiprocessor runs and what the caches do, only a GPU
tells.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from aerie.kernels.route import FUSION

THREADS_PER_WARP = 32
# "        /*0a30*/              @!P0 BRA 0x11a0 ;": address and instruction, its predicate aside.
INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?(.*?)\s*;")
BACK_TO = re.compile(r"BRA\S*(?:\s+\S+,)?\s+0x([0-9a-f]+)")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Code:
    """A kernel compiled for one architecture."""

    architecture: int
    warps: int
    registers: int
    """Of a thread."""
    spilled_bytes: int
    """Of a thread, to memory: its stack, for these kernels have no other use of one."""
    shared_bytes: int
    """Of a program."""
    instructions: tuple[tuple[int, str], ...]
    """Address and text, predicates left out."""

    @cached_property
    def main_loop(self) -> tuple[str, ...]:
        """The shortest loop that holds the most matrix products; empty when none holds any."""
        best: tuple[int, int] = (0, 0)
        loop: tuple[str, ...] = ()
        for end, text in self.instructions:
            match = BACK_TO.match(text)
            start = int(match[1], 16) if match else end
            if start >= end:
                continue
            body = tuple(one for at, one in self.instructions if start <= at <= end)
            products = sum("MMA" in opcode(one) for one in body)
            if products and (products, -len(body)) > best:
                best, loop = (products, -len(body)), body
        return loop

    @property
    def loop_opcodes(self) -> Counter[str]:
        """How often each opcode stands in the main loop, without its modifiers."""
        return Counter(opcode(text) for text in self.main_loop)

    def per_weight(self, weights: int) -> float:
        """Instructions of a thread in the main loop over its share of the weights that a program takes in one turn."""
        return len(self.main_loop) / (weights / (self.warps * THREADS_PER_WARP))

    def programs(self, registers: int = 65536, shared_bytes: int = 227 * 1024) -> int:
        """How many fit on a multiprocessor, an H100's or H200's if not told otherwise, which keeps 1 KiB of each."""
        granted = -(-self.registers // 8) * 8 * self.warps * THREADS_PER_WARP
        return min(registers // granted, shared_bytes // (self.shared_bytes + 1024))


def opcode(text: str) -> str:
    """The opcode of an instruction, without its modifiers."""
    return text.split()[0].split(".")[0]


def build(
    kernel: Any,  # noqa: ANN401 -- a JITFunction, of which Triton exports no type
    arguments: Mapping[str, object],
    architecture: int,
    warps: int,
    stages: int,
    options: Mapping[str, object] | None = None,
) -> Code:
    """Compile a kernel.

    Args:
        kernel: a function decorated with triton.jit, and not interpreted.
        arguments: by name. `*bf16` and the like: a pointer to 16 bytes' boundary; `i32`: a number, `i32:16`: one that
            is a multiple of 16; anything else is known to the compiler.
        architecture: 90 for sm_90.
        warps: of a program.
        stages: of its loops that do not say.
        options: further ones of Triton's.

    Raises:
        RuntimeError: the assembler refuses what Triton hands it.
    """
    typed = {name: value for name, value in arguments.items() if isinstance(value, str)}
    aligned = [name for name, value in typed.items() if value.startswith("*") or value.endswith(":16")]
    source = ASTSource(
        fn=kernel,
        signature={name: typed.get(name, "constexpr").partition(":")[0] for name in kernel.arg_names},
        constexprs={name: value for name, value in arguments.items() if name not in typed},
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    chosen = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": FUSION, **(options or {})}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, THREADS_PER_WARP), options=chosen)
    return read(compiled.asm["cubin"], architecture, warps, compiled.metadata.shared)


def read(cubin: bytes, architecture: int, warps: int, shared_bytes: int) -> Code:
    """What the disassembler tells of a binary. Raises RuntimeError when it tells something else than was looked for."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, listing = (_disassemble(option, file.name) for option in ("-res-usage", "-sass"))
    found = USAGE.search(usage)
    if found is None:
        raise RuntimeError(f"the disassembler tells of no registers: {usage}")
    registers, stack, _, local = map(int, found.groups())
    matches = filter(None, map(INSTRUCTION.match, listing.splitlines()))
    instructions = tuple((int(match[1], 16), match[2]) for match in matches)
    return Code(architecture, warps, registers, stack + local, shared_bytes, instructions)


def _disassemble(option: str, path: str) -> str:
    command = [knobs.nvidia.cuobjdump.path, option, path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
