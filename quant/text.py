# SPDX-License-Identifier: Apache-2.0
"""Text for calibration and for measuring quality, as token ids.

A file holds one JSON object a line, or a list of them: {"prompt_ids": [...], "answer_ids": [...]} as `aerie quantize`
generates them, {"messages": [...]} rendered by the model's chat template, or {"text": "..."}.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aerie.json_items import ItemsError, json_items
from aerie.quant.errors import QuantError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Document:
    """Tokens, and how many of them were given: what follows is predicted where quality is measured."""

    token_ids: tuple[int, ...]
    given: int = 1


def read_documents(path: Path, model: Path) -> list[Document]:
    """The documents of a file, tokenised as `model` reads them.

    Raises:
        QuantError: the file or a line of it cannot be used; the message names the line.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    documents = []
    try:
        for item, where in json_items(path):
            try:
                documents.append(_document(item, tokenizer))
            except (ValueError, KeyError, TypeError) as error:
                known = '{"prompt_ids", "answer_ids"}, {"messages"}, {"text"}'
                raise QuantError(f"{where}: is none of {known} ({error})") from error
    except ItemsError as error:
        raise QuantError(str(error)) from error
    if not documents:
        raise QuantError(f"{path}: holds no document")
    return documents


def _document(line: object, tokenizer: "PreTrainedTokenizerBase") -> Document:
    if not isinstance(line, dict):
        raise TypeError("no object")
    if "prompt_ids" in line:
        return Document((*line["prompt_ids"], *line["answer_ids"]), max(1, len(line["prompt_ids"])))
    if "messages" in line:
        text = str(tokenizer.apply_chat_template(line["messages"], tokenize=False))
        return Document(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return Document(tuple(tokenizer(str(line["text"]))["input_ids"]))


def fingerprint(documents: Sequence[Document]) -> str:
    """SHA-256 over the tokens of all documents."""
    content = json.dumps([[document.given, *document.token_ids] for document in documents])
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Tokens:
    """Documents side by side, [D, L], padded at their ends."""

    ids_DL: Tensor
    counts_DL: Tensor
    """Which tokens are of a document."""
    scored_DL: Tensor
    """Positions whose next token is one to predict."""

    @classmethod
    def of(cls, documents: Sequence[Document], longest: int) -> "Tokens":
        """Documents of two tokens or more, cut after `longest` tokens.

        Raises:
            QuantError: none is left.
        """
        kept = [document for document in documents if min(len(document.token_ids), longest) > 1]
        if not kept:
            raise QuantError("calibration: no document has two tokens or more")
        lengths = torch.tensor([min(len(document.token_ids), longest) for document in kept])
        ids_DL = torch.zeros(len(kept), int(lengths.max()), dtype=torch.long)
        for row, document in zip(ids_DL, kept, strict=True):
            row[: min(len(document.token_ids), longest)] = torch.tensor(document.token_ids[:longest])
        place_L = torch.arange(ids_DL.shape[1])
        given = torch.tensor([document.given for document in kept])
        counts_DL = place_L < lengths[:, None]
        return cls(ids_DL, counts_DL, (place_L >= given[:, None] - 1) & (place_L < lengths[:, None] - 1))
