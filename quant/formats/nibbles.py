# SPDX-License-Identifier: Apache-2.0
"""Eight 4-bit values in a word of 32 bits, as all formats have them; they differ in direction and order.

Shape suffixes: R rows, C columns, W words of a row (C = 8 W).
"""

import torch

VALUES_PER_WORD = 8
NATURAL = (0, 1, 2, 3, 4, 5, 6, 7)


def pack(values_RC: torch.Tensor, order: tuple[int, ...] = NATURAL) -> torch.Tensor:
    """Pack integers in [0, 15] into int32 [R, W]: bits 4i to 4i+3 of word w hold column 8w + order[i].

    One nibble after the other, so that no copy of the weight in 32 bits is made.
    """
    rows, columns = values_RC.shape
    words_RW = torch.zeros(rows, columns // VALUES_PER_WORD, dtype=torch.int32, device=values_RC.device)
    for place, column in enumerate(order):
        words_RW |= values_RC[:, column::VALUES_PER_WORD].to(torch.int32) << 4 * place
    return words_RW


def unpack(words_RW: torch.Tensor, order: tuple[int, ...] = NATURAL) -> torch.Tensor:
    """Unpack int32 [R, W] into uint8 [R, C]."""
    rows, words = words_RW.shape
    values_RC = torch.empty(rows, words * VALUES_PER_WORD, dtype=torch.uint8, device=words_RW.device)
    for place, column in enumerate(order):
        values_RC[:, column::VALUES_PER_WORD] = (words_RW >> 4 * place) & 0xF
    return values_RC
