# SPDX-License-Identifier: Apache-2.0
"""The limits that the INT4 kernels' machine code is held to, for decoding and verification.

On an H200 at full bandwidth there are four instructions a weight, of which some 60 % are issued in practice: hence the
limit. Two programs must fit on a multiprocessor, so that one computes while the other waits.
"""

from aerie.kernels.aot import Code

COUNTED = {"3.8.0": "kernels-static-cuda.json", "3.9.0": "kernels-static.json"}
"""The result with the counts of each version of Triton: 3.8.0 is what the lock for GPUs has, 3.9.0 that for CPUs."""
MOST_PER_WEIGHT = 2.9
MOST_SHARED_BYTES = 113 * 1024
PRODUCT = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
"""The matrix product of an architecture."""


def faults(code: Code, weights: int) -> set[str]:
    """What of a build that takes so many weights in one turn of its loop is not as it should be."""
    found = {
        "spills": code.spilled_bytes > 0,
        "no matrix product of its architecture": not code.loop_opcodes[PRODUCT[code.architecture]],
        "converts integers": any(opcode.startswith("I2F") for opcode in code.loop_opcodes),
        "too many instructions": code.per_weight(weights) > MOST_PER_WEIGHT,
        "too much shared memory": code.shared_bytes > MOST_SHARED_BYTES,
        "a multiprocessor has room for one": code.programs() < 2,
    }
    return {fault for fault, there in found.items() if there}
