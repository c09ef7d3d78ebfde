# SPDX-License-Identifier: Apache-2.0
"""Which main models hand out the hidden states that an EAGLE-3 head reads, from the source of vLLM's classes.

Importing a class of vLLM takes many seconds; its source says the same in a few milliseconds. Read against 0.32.0:
`model_executor/models/registry.py` has dictionaries `_..._MODELS` from architectures to (module, class), and a class
that hands out states has `SupportsEagle3` among its bases.
"""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

INTERFACE: Final = "SupportsEagle3"
MODELS: Final = "model_executor.models"


def supports_eagle3(architecture: str) -> bool | None:
    """Whether vLLM's class for this architecture hands out hidden states; None where its source does not tell."""
    entry = registry().get(architecture)
    return None if entry is None else _supports(*entry)


@cache
def registry() -> dict[str, tuple[str, str]]:
    """Module below `vllm` and class name by architecture, of all models that vLLM brings; empty without vLLM."""
    entries: dict[str, tuple[str, str]] = {}
    for node in _parsed(f"{MODELS}.registry").body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id.endswith("_MODELS") and isinstance(node, ast.Assign):
            entries |= _entries(node.value)
    return entries


def _entries(value: ast.expr) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for key, item in zip(value.keys, value.values, strict=True) if isinstance(value, ast.Dict) else ():
        if not isinstance(key, ast.Constant) or not isinstance(item, ast.Tuple):
            continue
        words = [part.value for part in item.elts if isinstance(part, ast.Constant)]
        if len(words) == 2 and isinstance(key.value, str):
            module, name = map(str, words)
            found[key.value] = (module.removeprefix("vllm.") if "." in module else f"{MODELS}.{module}", name)
    return found


@cache
def _supports(module: str, name: str) -> bool | None:
    tree = _parsed(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            verdicts = [_base(module, base) for base in node.bases]
            return True if True in verdicts else None if None in verdicts else False
    return _imported(module, name)


def _base(module: str, base: ast.expr) -> bool | None:
    name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else None
    if name == INTERFACE:
        return True
    return False if name is None or isinstance(base, ast.Attribute) else _supports(module, name)


def _imported(module: str, name: str) -> bool | None:
    """Follow an import within vLLM; what comes from elsewhere has no interface of vLLM's."""
    for node in ast.walk(_parsed(module)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    source = _absolute(module, node)
                    return False if source is None else _supports(source, alias.name)
    return None


def _absolute(module: str, node: ast.ImportFrom) -> str | None:
    """The imported module's name below `vllm`; None for one of another package."""
    named = node.module or ""
    if node.level == 0:
        return named.removeprefix("vllm.") if named.startswith("vllm.") else None
    path = _path(module)
    # A package's own relative imports start at itself.
    above = node.level - (path is not None and path.name == "__init__.py")
    parents = module.split(".")[: len(module.split(".")) - above]
    return ".".join([*parents, named] if named else parents)


@cache
def _parsed(module: str) -> ast.Module:
    path = _path(module)
    return ast.parse("" if path is None else path.read_text(encoding="utf-8"))


def _path(module: str) -> Path | None:
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    base = Path(spec.origin).parent.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
