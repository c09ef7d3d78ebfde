# SPDX-License-Identifier: Apache-2.0
"""Nothing of ours turns data into code: no pickle, no torch.load of whole objects, no code of a checkpoint's own."""

import ast
from collections.abc import Iterator
from pathlib import Path

MODULES = frozenset(
    {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "jsonpickle"}
)

# path -> why it may.
ALLOWED = {"trainer/draft/child.py": "whether an exception of its own can be sent to its parent"}


def offences(tree: ast.AST) -> Iterator[str]:
    """What a module does that runs what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            named = {word.arg: word.value for word in node.keywords}
            function = ast.unparse(node.func)
            if function == "torch.load" and not _is(named.get("weights_only"), True):
                yield "torch.load without weights_only=True"
            if function in ("numpy.load", "np.load") and _is(named.get("allow_pickle"), True):
                yield "numpy.load with allow_pickle=True"
            if "trust_remote_code" in named and not _is(named["trust_remote_code"], False):
                yield "trust_remote_code"


def _is(node: ast.expr | None, wanted: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is wanted


def test_no_module_runs_what_it_reads(root: Path, modules: list[Path]) -> None:
    found = {str(path): told for path in modules if (told := list(offences(ast.parse((root / path).read_text()))))}
    assert set(found) == set(ALLOWED), found


def test_the_lint_sees_what_it_looks_for() -> None:
    source = "\n".join(
        [
            "import dill, os",
            "from pickle import loads",
            "torch.load('x')",
            "torch.load('x', weights_only=False)",
            "torch.load('x', weights_only=True)",
            "AutoModel.from_pretrained('x', trust_remote_code=True)",
            "AutoModel.from_pretrained('x', trust_remote_code=False)",
            "numpy.load('x', allow_pickle=True)",
        ]
    )
    assert len(list(offences(ast.parse(source)))) == 6
