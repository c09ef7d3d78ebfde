# SPDX-License-Identifier: Apache-2.0
"""What vLLM logs of a request that it refused, or of an answer that it could not read: a line, and no traceback."""

import logging

PARSERS = ("vllm.parser", "vllm.reasoning", "vllm.tool_parsers")
"""They read what a model wrote, which may be anything: a call that `max_tokens` cut, say."""
HANDLERS = ("vllm.entrypoints",)


class OneLine(logging.Filter):
    """Writes what clients and models did wrong into the line itself; failures of the engine keep their traceback."""

    def __init__(self, refusals: tuple[type[Exception], ...]) -> None:
        super().__init__()
        self.refusals = refusals
        """What handlers raise for a request that is refused after its stream has begun."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record."""
        error = record.exc_info[1] if record.exc_info else None
        refused = record.name.startswith(HANDLERS) and isinstance(error, self.refusals)
        if error is not None and (refused or record.name.startswith(PARSERS)):
            record.msg, record.args = "%s %.300r", (record.getMessage(), error)
            record.exc_info = record.exc_text = None
        return True


def shorten(logger: logging.Logger) -> None:
    """Have the handlers of vLLM's logger write such records. Idempotent."""
    from vllm.exceptions import VLLMClientError

    for handler in logger.handlers:
        if not any(isinstance(known, OneLine) for known in handler.filters):
            handler.addFilter(OneLine((VLLMClientError, ValueError)))
