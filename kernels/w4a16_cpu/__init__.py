# SPDX-License-Identifier: Apache-2.0
"""Linear layer with 4-bit weights and 16-bit activations for x86 CPUs.

Which layers it takes is said here, apart from the operator, for those who only ask: this file imports nothing.
"""

OPERATOR_GROUPS = (256, 128, 64, 32)
"""Inputs that may share a scale in torch's operator."""
PER_CHANNEL = -1
"""Group size, in vLLM's words, of a layer whose outputs have one scale each."""


def operator_group(inputs: int, group_size: int) -> int:
    """The largest group of the operator into which a layer's groups can be cut; their scale is then repeated.

    Raises:
        ValueError: `unsupported` has a reason.
    """
    size = inputs if group_size == PER_CHANNEL else group_size
    for group in OPERATOR_GROUPS:
        if size > 0 and size % group == 0 and inputs % size == 0:
            return group
    raise ValueError(unsupported(inputs, group_size))


def unsupported(inputs: int, group_size: int) -> str | None:
    """Why a layer cannot be served, None when it can. Any number of outputs will do: they are padded."""
    least = OPERATOR_GROUPS[-1]
    if group_size == PER_CHANNEL:
        return f"{inputs} inputs with one scale an output are no multiple of {least}" if inputs % least else None
    if group_size <= 0 or group_size % least:
        return f"group size {group_size} is no multiple of {least}"
    if inputs % group_size:
        return f"{inputs} inputs are no multiple of the group size {group_size}"
    return None
