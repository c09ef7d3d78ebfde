# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint's `tokenizer.json` can be read, told before an engine starts."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from aerie.server.errors import BadOption
from aerie.server.failure import describe


def check_tokenizer_file(option: str, folder: Path) -> None:
    """`tokenizer.json`, where there is one, must be one for `tokenizers`, with the list that transformers looks for.

    Raises:
        BadOption: the file.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    try:
        Tokenizer.from_file(str(path))
        json.loads(path.read_text(encoding="utf-8"))["added_tokens"]
    except Exception as error:  # of no narrower class, from `tokenizers`
        problem = f"{path} is not a tokenizer ({describe(error)})"
        raise BadOption(option, problem, "copy it again from where the checkpoint came from") from error
