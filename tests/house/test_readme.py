# SPDX-License-Identifier: Apache-2.0
"""The README tells the truth: its figures are those of the result file, and its example code is code."""

import re
import subprocess
import sys
from pathlib import Path


def test_figures_are_those_of_the_result_file(root: Path) -> None:
    command = [sys.executable, str(root / "docs/render_figures.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_figures_are_written_nowhere_else(root: Path) -> None:
    outside = re.sub(r"<!-- figures: begin.*?figures: end -->", "", (root / "README.md").read_text(), flags=re.DOTALL)
    assert re.findall(r"\d+(?:\.\d+)? ?(?:×|%|tok/s|tokens per second)", outside) == []


def test_python_examples_compile(root: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")


def test_not_for_medical_use(root: Path) -> None:
    assert "Not for medical use" in (root / "README.md").read_text()
