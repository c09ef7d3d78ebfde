# SPDX-License-Identifier: Apache-2.0
"""Files of JSON values: one list of them, or one a line."""

import json
from collections.abc import Iterator
from pathlib import Path


class ItemsError(ValueError):
    """A file that is neither; the message names it, the place in it and the fix."""


def json_items(path: Path) -> Iterator[tuple[object, str]]:
    """Each value, and where it stands: `FILE, line 1` or `FILE, item 1`.

    Raises:
        ItemsError: the file cannot be read, or a piece of it is no JSON. The values before that piece were yielded.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ItemsError(f"{path} cannot be read as text ({error}); give JSONL or a JSON list") from error
    if text.lstrip().startswith("["):
        try:
            listed = json.loads(text)
        except ValueError as error:
            raise ItemsError(f"{path} is no JSON list ({error}); mend it, or give one JSON object a line") from error
        yield from ((item, f"{path}, item {number}") for number, item in enumerate(listed, 1))
        return
    # Not splitlines(): it also splits at characters that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line), f"{path}, line {number}"
            except ValueError as error:
                raise ItemsError(f"{path}, line {number} is not JSON ({error}); give one object a line") from error
