# SPDX-License-Identifier: Apache-2.0
"""The signals that stop `aerie serve`. Imports nothing heavy: they must be heard before anything is imported."""

import os
import signal


def stop_signals() -> tuple[signal.Signals, ...]:
    """Ctrl-C, SIGTERM and a terminal that hangs up; the last not where it is ignored already, as under `nohup`."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_at_once() -> None:
    """Have a stop signal end the process with status 0. For a process that has nothing yet to end in order.

    Not by SystemExit: what a library catches while it is imported would be lost.
    """
    for number in stop_signals():
        signal.signal(number, lambda number, frame: os._exit(0))
