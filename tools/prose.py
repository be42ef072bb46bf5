"""The prose in pages and modules: what a reader reads, without code and markup."""

import ast
import re
from collections.abc import Iterator
from inspect import cleandoc
from typing import NamedTuple

FENCE = re.compile(r"^\s*(```|~~~)")
ITEM = re.compile(r"^\s*([*+-]|\d+\.)\s+")
IMAGE_OR_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
CODE = re.compile(r"`+[^`]*`+")
# "name: what it is", as sections such as "Attributes:" have them, or a row "name   what it is".
ENTRY = re.compile(r"^\s{0,2}([a-z_\d*]+(, [a-z_\d*]+)*: |\S+ {2,})")
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note):$")


class Text(NamedTuple):
    """A piece of prose.

    Attributes:
      line: where it begins, from 1.
      is_summary: it is the first paragraph of a docstring, or a help text.
      is_table: it is a row of a table, whose cells are no sentence together.
    """

    line: int
    words: str
    is_summary: bool = False
    is_table: bool = False


def strip_markup(text: str) -> str:
    """A paragraph without its code, the targets of its links and its emphasis."""
    text = CODE.sub("X", text)
    return IMAGE_OR_LINK.sub(r"\1", text).replace("**", "").replace("|", " ")


def read_page(page: str) -> Iterator[Text]:
    """The paragraphs, items and rows of a Markdown page."""
    block: list[str] = []
    start = 1
    for number, line in enumerate([*_blank_fences(page), ""], 1):
        is_row = line.lstrip().startswith("|")
        is_apart = is_row or line.startswith("#") or not line.strip()
        if is_apart or ITEM.match(line):
            yield from _paragraph(start, block)
            block = []
        if is_row:
            yield Text(number, strip_markup(line), is_table=True)
        elif not is_apart:
            start = start if block else number
            block.append(ITEM.sub("", line))


def _blank_fences(page: str) -> Iterator[str]:
    """The lines of a page, those of fenced code as empty ones, so that numbers of lines hold."""
    is_fenced = False
    for line in page.splitlines():
        is_fence = bool(FENCE.match(line))
        yield "" if is_fence or is_fenced else line
        is_fenced ^= is_fence


def _paragraph(line: int, block: list[str]) -> Iterator[Text]:
    if block:
        yield Text(line, strip_markup(" ".join(block)))


def read_python(module: str) -> Iterator[Text]:
    """The public docstrings, help texts and error messages of a module."""
    tree = ast.parse(module)
    yield from _read_docstring(tree)
    for node in _walk_public(tree):
        yield from _read_docstring(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "help":
            yield Text(node.value.lineno, strip_markup(_spell(node.value)), is_summary=True)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for argument in node.exc.args:
                yield Text(node.lineno, _spell(argument))
        elif isinstance(node, ast.Dict):
            yield from _read_facts(node)


def _walk_public(node: ast.AST) -> Iterator[ast.AST]:
    """Classes and functions whose names are public, with those of public classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef)) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from _walk_public(child)


def _read_docstring(node: ast.AST) -> Iterator[Text]:
    body = getattr(node, "body", [])
    match body[:1]:
        case [ast.Expr(value=ast.Constant(value=str(text)), lineno=line)]:
            yield from read_docstring(text, line)


def read_docstring(text: str, line: int) -> Iterator[Text]:
    """The paragraphs of a docstring, and the entries of its sections.

    Formulas and code, which are indented and follow a blank line, are left out.
    """
    block: list[str] = []
    is_summary = True
    for row in [*cleandoc(text).splitlines(), ""]:
        is_title = bool(SECTION.match(row))
        if block and (is_title or ENTRY.match(row) or not row.strip()):
            yield Text(line, strip_markup(" ".join(block)), is_summary)
            block, is_summary = [], False
        is_code = not block and row.startswith("    ")
        if row.strip() and not is_title and not is_code:
            block.append(ENTRY.sub("", row))


def _read_facts(node: ast.Dict) -> Iterator[Text]:
    """What parts say of facts that do not fit, which becomes an error: `{Fact.X: "..."}`."""
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Attribute) and ast.unparse(key).startswith("Fact."):
            yield Text(value.lineno, _spell(value))


def _spell(node: ast.expr) -> str:
    """What a string expression says, with X for what is known only when it runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_spell(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _spell(node.left) + _spell(node.right)
    return "X"
