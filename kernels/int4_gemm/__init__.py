# SPDX-License-Identifier: Apache-2.0
"""Linear layer with 4-bit weights and 16-bit activations for GPUs, in Triton.

Which layers it takes is said here, apart from the operator, for those who only ask: this file imports nothing.
"""

OPERATOR_GROUPS = (128, 64)
"""Inputs that may share a scale in the kernel."""
PER_CHANNEL = -1
"""Group size, in vLLM's words, of a layer whose outputs have one scale each."""


class UnsupportedError(ValueError):
    """The operator does not take this; the message says what it would take."""


def operator_group(inputs: int, group_size: int) -> int:
    """The largest group of the kernel into which a layer's groups can be cut; their scale is then repeated.

    Raises:
        UnsupportedError: `unsupported` has a reason.
    """
    reason = unsupported(inputs, group_size)
    if reason is not None:
        raise UnsupportedError(reason)
    return OPERATOR_GROUPS[0] if group_size % OPERATOR_GROUPS[0] == 0 or group_size == PER_CHANNEL else 64


def unsupported(inputs: int, group_size: int) -> str | None:
    """Why a layer cannot be served, None when it can. Any number of outputs will do, and any of inputs."""
    least = OPERATOR_GROUPS[-1]
    if inputs <= 0:
        return f"a layer of {inputs} inputs"
    if group_size != PER_CHANNEL and (group_size <= 0 or group_size % least):
        return f"group size {group_size} is no multiple of {least}"
    return None
