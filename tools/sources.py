"""What can be counted in source files of Python, and which modules of a package import which.

Complexity is 1, and 1 more for each `if`, `elif`, `for`, `while`, `except`, `case`, ternary, `and`,
`or`, and each `for` of a comprehension. A function inside another one counts for itself.
"""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

WIDTH = 100
# What tells a tool about a line stands on that line: it does not count, as with ruff.
PRAGMA = re.compile(r"  # (type:|noqa).*")

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Scope: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.comprehension)
BRANCHES = (*LOOPS, ast.If, ast.IfExp, ast.ExceptHandler, ast.match_case)


@dataclass(frozen=True)
class Source:
    """A file of Python, read once.

    Attributes:
      path: from the repository's root, with slashes.
    """

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def code(self) -> set[int]:
        """The numbers of the lines that are not blank, no comment and no docstring."""
        found = {k for k, line in enumerate(self.lines, 1) if line.strip()}
        found -= {k for k in found if self.lines[k - 1].lstrip().startswith("#")}
        for node in self.nodes:
            if isinstance(node, ast.Expr) and is_docstring(node):
                found.difference_update(lines_of(node))
        return found

    @property
    def module(self) -> str:
        """The name by which a file below `src` is imported."""
        parts = Path(self.path).with_suffix("").parts[1:]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_sources(root: Path, folders: Sequence[str]) -> list[Source]:
    """All files of Python below the folders, in the order of their paths."""
    files = sorted(file for folder in folders for file in (root / folder).rglob("*.py"))
    return [Source(file.relative_to(root).as_posix(), file.read_text()) for file in files]


def is_docstring(node: ast.stmt) -> bool:
    """Whether a statement is a string and nothing else."""
    constant = node.value if isinstance(node, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


def lines_of(node: ast.stmt) -> range:
    """The numbers of a statement's lines, without its decorators."""
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


# --- one file ---


def find_scopes(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Scope]]:
    """Functions and classes with their qualified names, those inside others too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Scope):
            yield prefix + child.name, child
            yield from find_scopes(child, f"{prefix}{child.name}.")
        elif not isinstance(child, ast.expr):
            yield from find_scopes(child, prefix)


def count_branches(function: Function) -> int:
    """The complexity of a function, as the head of this file defines it."""
    return 1 + sum(_branches(node) for node in _own_nodes(function))


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes below one, without those of functions and classes inside it."""
    ahead = [scope]
    while ahead:
        for child in ast.iter_child_nodes(ahead.pop()):
            if not isinstance(child, Scope):
                ahead.append(child)
                yield child


def _branches(node: ast.AST) -> int:
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    return int(isinstance(node, BRANCHES))


def count_methods(interface: ast.ClassDef) -> int:
    """The methods and properties of a Protocol; 0 for any other class."""
    bases = [ast.unparse(base).partition("[")[0] for base in interface.bases]
    if not {"Protocol", "typing.Protocol"}.intersection(bases):
        return 0
    return sum(isinstance(node, Function) for node in interface.body)


def find_wide_lines(source: Source) -> list[int]:
    """The numbers of the lines wider than WIDTH."""
    long = [k for k, line in enumerate(source.lines, 1) if len(line) > WIDTH]
    return [k for k in long if len(PRAGMA.sub("", source.lines[k - 1])) > WIDTH]


def count_comments(source: Source) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(source.text).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def count_body_lines(source: Source) -> int:
    """How many lines, not blank, lie in functions after the signature and the docstring."""
    found = 0
    for node in source.nodes:
        if isinstance(node, Function):
            first, end = node.body[0], lines_of(node).stop - 1
            begin = lines_of(first).stop if is_docstring(first) else first.lineno
            found += sum(bool(line.strip()) for line in source.lines[begin - 1 : end])
    return found


# --- a package ---


def find_imports(source: Source, modules: Set[str]) -> set[str]:
    """Which of the modules a file needs when it runs, wherever in it they are imported."""
    found: set[str] = set()
    for node in _run_nodes(source.tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, source)
            inner = [f"{base}.{alias.name}" for alias in node.names]
            found.update(name if name in modules else base for name in inner)
    return found.intersection(modules) - {source.module}


def _run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements below a node, without those for type checkers alone."""
    for child in ast.iter_child_nodes(tree):
        checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not checking and not isinstance(child, ast.expr):
            yield child
            yield from _run_nodes(child)


def _absolute(node: ast.ImportFrom, source: Source) -> str:
    """The module that `from module import` names, where it is relative as well."""
    if not node.level:
        return node.module or ""
    above = source.module.split(".")
    up = node.level - source.path.endswith("__init__.py")
    return ".".join([*above[: len(above) - up], *filter(None, [node.module])])


def find_cycles(imports: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """For each module that imports itself by way of others: all that lie on such ways."""
    reached = {module: _reach(module, imports) for module in imports}
    return {
        module: sorted(other for other in reached[module] if module in reached[other])
        for module in imports
        if module in reached[module]
    }


def _reach(module: str, imports: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = list(imports[module])
    while ahead:
        other = ahead.pop()
        if other not in found:
            found.add(other)
            ahead += imports[other]
    return found


def find_definitions(package: Sequence[Source]) -> dict[str, list[str]]:
    """By the name of a public function or class the modules that define one of that name."""
    found: dict[str, set[str]] = defaultdict(set)
    for source in package:
        for node in source.tree.body:
            if isinstance(node, Scope) and not node.name.startswith("_"):
                found[node.name].add(source.module)
    return {name: sorted(modules) for name, modules in found.items()}
