# SPDX-License-Identifier: Apache-2.0
"""Who multiplies INT4 weights, in linear layers and in experts: our kernels or vLLM's.

Imports nothing heavy: the server asks before an engine exists. vLLM's processes read the variable, which `aerie serve`
sets from `--int4-kernel`.
"""

import os
from typing import Final, Literal, get_args

from aerie.quant.errors import QuantError

CHOICE_VARIABLE: Final = "AERIE_INT4_KERNEL"
Choice = Literal["auto", "aerie", "vllm"]


def kernel_choice() -> Choice:
    """The value of AERIE_INT4_KERNEL.

    Raises:
        QuantError: it is none of auto, aerie, vllm.
    """
    value = os.environ.get(CHOICE_VARIABLE) or "auto"
    for choice in get_args(Choice):
        if value == choice:
            return choice  # type: ignore[no-any-return]  # get_args knows no types
    raise QuantError(f"{CHOICE_VARIABLE}={value}: set it to auto (the default), aerie or vllm")
