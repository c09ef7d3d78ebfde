# SPDX-License-Identifier: Apache-2.0
"""The account that runs a command: libraries ask it for a name and a home folder, and it limits open files."""

import getpass
import os
import resource
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from aerie.server.errors import BadOption

ENGINE_FILES: Final = 256
"""Open files of one process, connections of clients aside; 86 were the most that were seen (a worker on a CPU)."""


def check_home(environ: MutableMapping[str, str]) -> None:
    """Give an account that the system does not know, such as a container's arbitrary number, the name torch asks for.

    Raises:
        BadOption: there is no home folder either, for the caches of vLLM, torch and Hugging Face.
    """
    number = os.getuid()
    try:
        Path.home()
    except RuntimeError:
        problem = f"user {number} has no home folder, and vLLM and torch keep caches there"
        raise BadOption("HOME", problem, "set HOME to a folder that this user can write to") from None
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        environ["USER"] = f"user{number}"


def check_open_files(connections: int) -> None:
    """Raise the limit of open files to what so many connections need, as far as the system allows.

    Raises:
        BadOption: that is not enough.
    """
    needed = ENGINE_FILES + connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        problem = f"{hard} open files are allowed, and --max-connections {connections} needs {needed}"
        fix = f"raise the hard limit to {needed}, or lower --max-connections"
        if hard <= ENGINE_FILES:
            fix = f"raise the hard limit to {needed}"
        raise BadOption("ulimit -n", problem, fix)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
