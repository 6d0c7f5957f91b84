"""Prompt texts that stay in their authors' repositories.

Texts that others wrote are not part of this package. A judge names the repository, the commit, the file, the variable
in it and the sha256 of the text; the text is read from the user's own copy of that repository and must have that hash.
The file is parsed, never run.
"""

import ast
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from armo_ray.errors import ConfigError

VARIABLE = "ARMO_RAY_JUDGE_TEXTS"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the authors published the texts of a judge."""

    repository: str  # OWNER/NAME on GitHub
    commit: str
    path: str
    license: str

    def __str__(self) -> str:
        return f"https://github.com/{self.repository}/blob/{self.commit}/{self.path}"


def authors_text(origin: Origin, variable: str, sha256: str) -> str:
    """The text that a variable of the authors' file holds. Raises ConfigError if there is no copy, or another text."""
    file = _file(origin)
    text = _texts(file).get(variable)
    if text is None:
        raise ConfigError(
            f"{file}: it has no text {variable}; check out {origin.commit[:12]} of {origin.repository}"
        )
    if (found := hashlib.sha256(text.encode()).hexdigest()) != sha256:
        raise ConfigError(
            f"{file}: the text {variable} is not the one that this judge was made for (sha256 {found[:12]}, expected "
            f"{sha256[:12]}); check out {origin.commit[:12]} of {origin.repository}"
        )
    return text


def _file(origin: Origin) -> Path:
    name = origin.repository.split("/")[1]
    folder = os.environ.get(VARIABLE)
    if folder:
        for root in (Path(folder) / name, Path(folder) / origin.repository, Path(folder)):
            if (root / origin.path).is_file():
                return root / origin.path
    where = f"{VARIABLE} is not set" if not folder else f"{folder} has no {name}/{origin.path} ({VARIABLE})"
    raise ConfigError(
        f"the prompt is its authors' text ({origin.license}), which is read from a copy of their repository: {where}. "
        f"Run: git clone https://github.com/{origin.repository} && git -C {name} checkout {origin.commit} && "
        f"export {VARIABLE}=$PWD"
    )


@cache
def _texts(file: Path) -> dict[str, str]:
    """The texts of a Python file's variables by name; those in a dict as VARIABLE.KEY."""
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ConfigError(f"{file}: cannot be read as Python: {error}") from error
    texts: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if isinstance(node.value, ast.Dict):
                pairs = zip(node.value.keys, node.value.values, strict=True)
                named = [(key.value, value) for key, value in pairs if isinstance(key, ast.Constant)]
                found = {
                    f"{name}.{key!s}": _text(value, texts) for key, value in named if isinstance(key, str)
                }
            else:
                found = {name: _text(node.value, texts)}
            texts |= {key: text for key, text in found.items() if text is not None}
    return texts


def _text(node: ast.expr, texts: Mapping[str, str]) -> str | None:
    """The text of an expression: a literal, a variable above, a sum of texts, or a text stripped."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        return texts.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left, texts), _text(node.right, texts)
        return None if left is None or right is None else left + right
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "strip"
        and not node.args
    ):
        inner = _text(node.func.value, texts)
        return None if inner is None else inner.strip()
    return None
