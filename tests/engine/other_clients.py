# SPDX-License-Identifier: Apache-2.0
"""Clients of other makers, which `make clients` installs: scripts in their own processes, which check what they get."""

import os
import shutil
import subprocess
from pathlib import Path

INSTALLED = Path(__file__).parents[2] / ".venv-clients"
SCRIPTS = ("openai.mjs", "ai_sdk.mjs", "with_langchain.py", "with_litellm.py")
QUIET = {"PATH": os.environ["PATH"], "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
"""None of them asks others than the server."""


def run(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script, within a folder from which JavaScript finds its packages."""
    (folder / "node_modules").symlink_to(INSTALLED / "node_modules")
    shutil.copy(Path(__file__).parent / "clients" / script, folder)
    runner = shutil.which("node") if script.endswith(".mjs") else INSTALLED / "bin/python"
    command = [str(runner), script, *arguments]
    return subprocess.run(command, cwd=folder, env=QUIET, capture_output=True, text=True, check=False)
