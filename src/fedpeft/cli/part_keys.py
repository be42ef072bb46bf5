"""The keys of a part and what they mean, read from its source: importing it would load torch."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Any

_KEYS = re.compile(r"((?:\w+, )*\w+): (.*)")
"""How a docstring's Attributes begin a line: one key or several, and what is said of them."""


@dataclass(frozen=True)
class PartKey:
    """One key.

    Attributes:
      default: as a plan writes it; "" where the key must be given.
      meaning: a sentence or more; "" where the part says nothing.
    """

    name: str
    default: str
    meaning: str


def read_source(target: str) -> tuple[ast.Module, ast.ClassDef | None] | None:
    """A part's module and its class in it, without importing either; None where there is no
    source."""
    module, _, name = target.partition(":")
    try:
        spec = find_spec(module)
        tree = ast.parse(Path(spec.origin).read_bytes()) if spec and spec.origin else None
    except (ImportError, OSError, SyntaxError, ValueError):
        tree = None
    if tree is None:
        return None
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return tree, next(iter(classes), None)


def keys_of(tree: ast.Module, found: ast.ClassDef) -> list[PartKey]:
    """The keys of a part's class in its module, in the order of its fields."""
    meanings = _meanings(ast.get_docstring(found) or "")
    return [
        PartKey(name, _constant(tree, default), meanings.get(name, ""))
        for name, default in _fields(found.body)
    ]


def _constant(tree: ast.Module, default: str) -> str:
    """What a constant is, where a default is the name of one; it may be another module's."""
    if not default.isidentifier() or not default.isupper():
        return default
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (source := _imported(node, default)):
            return _constant(*source)
        if isinstance(node, ast.Assign) and (value := _assigned(node, default)):
            return _constant(tree, _written(value))
    return default


def _imported(node: ast.ImportFrom, name: str) -> tuple[ast.Module, str] | None:
    """The module that a name comes from, and what it is called there."""
    other = [one.name for one in node.names if (one.asname or one.name) == name]
    source = read_source(f"{node.module}:") if other else None
    return (source[0], other[0]) if source else None


def _assigned(node: ast.Assign, name: str) -> ast.expr | None:
    """What an assignment gives to a name, alone or among others."""
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Name):
        return value if target.id == name else None
    if not isinstance(target, ast.Tuple) or not isinstance(value, ast.Tuple):
        return None
    values: list[ast.expr] = []
    for one in value.elts:
        spread = isinstance(one, ast.Starred) and isinstance(one.value, ast.Tuple)
        values += one.value.elts if spread else [one]  # type: ignore[attr-defined]
    pairs = zip(target.elts, values, strict=False)
    return next((x for one, x in pairs if isinstance(one, ast.Name) and one.id == name), None)


def _fields(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """The fields that a plan may set, each with its default."""
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        named = _keywords(node.value)
        if _is_key(node, node.target.id, named):
            made = isinstance(node.value, ast.Call) and _is_field(node.value)
            yield node.target.id, _default_of(node.value, named) if made else _written(node.value)


def _keywords(value: ast.expr | None) -> dict[str | None, str]:
    """The arguments of a call that have names, as source."""
    given = value.keywords if isinstance(value, ast.Call) else []
    return {one.arg: ast.unparse(one.value) for one in given}


def _is_key(node: ast.AnnAssign, name: str, named: Mapping[str | None, str]) -> bool:
    """Whether a plan may set this field."""
    kind = ast.unparse(node.annotation)
    return not (name.startswith("_") or kind.startswith("ClassVar") or named.get("init") == "False")


def _is_field(call: ast.Call) -> bool:
    """Whether a call makes a field, and is no value."""
    return ast.unparse(call.func) in ("field", "part", "parts", "unwritten", "code")


def _default_of(call: Any, named: Mapping[str | None, str]) -> str:
    """The default of a field that a function makes: of the registry's for parts, or of
    `dataclasses`."""
    function = ast.unparse(call.func)
    if "default_factory" in named:
        return "{}" if named["default_factory"] == "dict" else "[]"
    if "default" in named:
        return named["default"].replace("'", '"')
    if function == "unwritten":
        return _written(call.args[0])
    if function == "parts":
        return "[]"
    return _written(call.args[1]) if len(call.args) > 1 else ""


def _written(value: ast.expr | None) -> str:
    """A plain default as TOML has it."""
    if value is None:
        return ""
    text = ast.unparse(value)
    plain: Mapping[str, str] = {"None": "left out", "True": "true", "False": "false", "()": "[]"}
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return '"' + value.value + '"'
    return plain.get(text, text)


def _meanings(text: str) -> dict[str, str]:
    """What a docstring's Attributes say, by key."""
    _, found, after = text.partition("Attributes:\n")
    section = dedent(after.partition("\n\n")[0]) if found else ""
    said: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if match := _KEYS.fullmatch(line):
            names = match[1].split(", ")
            said |= dict.fromkeys(names, match[2])
        elif names:
            said |= {name: f"{said[name]} {line.strip()}" for name in names}
    return said
