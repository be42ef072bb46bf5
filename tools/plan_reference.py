"""Write every key of a plan with its type, default and meaning, from the code that reads it.

python -m tools.plan_reference            docs/reference/plan.md
python -m tools.plan_reference --check    ends with 1 where that page is not what the code says
"""

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

from fedpeft.catalogue import CATALOGUE
from fedpeft.plan.phases import Phase
from fedpeft.plan.plan import Plan
from fedpeft.plan.tables import AdmissionRules, Compute, Nodes, Privacy
from fedpeft.registry import find

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "plan.md"
TABLES: Mapping[str, type] = {
    "[privacy]": Privacy,
    "[admission]": AdmissionRules,
    "[compute]": Compute,
    "[nodes]": Nodes,
    "[[phase]]": Phase,
}
SLOTS: Mapping[str, str] = {
    "algorithm": "algorithms",
    "attack": "attacks",
    "evaluation": "evaluate_at",
    "metric": "metrics",
    "routing": "routing",
    "server_step": "server_steps",
    "stage": "stages",
    "codec": "uplink, downlink",
    "augment": "local.augments",
    "correction": "local.correction",
    "optimizer": "local.optimizer",
    "term": "local.terms",
}
"""The plan's key of a kind, where it has another name."""
OPTIONS: Mapping[str, str] = {
    "tracker": "No key of the plan but an option of `fedpeft run` and `fedpeft watch`: "
    "`--track NAME:KEY=VALUE`."
}
"""What is said of a kind that a plan does not name."""
HEAD = """# Every key of a plan

`python -m tools.plan_reference` writes this page from the code, and a test holds it to that. A part
is written as its name (`method = "lora"`) or as a table of its name and keys
(`method = { name = "lora", rank = 16 }`). `fedpeft show PLAN` prints a plan with all of its
defaults, and [plans](../guide/plans.md) says how to use them.
"""
ENGINE = "engine"
"""The kind whose parts have no keys: commands give them what they need."""


@dataclass(frozen=True)
class Key:
    """One key: its name, type, default and meaning, as the page shows them."""

    name: str
    kind: str
    default: str
    meaning: str

    def row(self) -> str:
        cells = (f"`{self.name}`", self.kind, self.default, self.meaning)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def meanings(cls: type) -> dict[str, str]:
    """By field what the section "Attributes" of a class says of it."""
    lines = inspect.getdoc(cls).splitlines() if inspect.getdoc(cls) else []  # type: ignore[union-attr]
    if "Attributes:" not in lines:
        return {}
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines[lines.index("Attributes:") + 1 :]:
        if line and not line.startswith(" "):
            break
        started = re.match(r"  ([a-z_0-9, ]+): (.*)", line)
        if started:
            names = started[1].split(", ")
            found |= dict.fromkeys(names, started[2])
            continue
        for name in names:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def summary(cls: type) -> str:
    """The first paragraphs of a docstring, up to its first section."""
    text = inspect.getdoc(cls) or ""
    plain = re.split(r"\n\n(?:Attributes|Raises|Args):", text)[0]
    return re.sub(r"\n(?!\n)", " ", plain).replace("\n ", "\n\n")


def keys(cls: type) -> Iterator[Key]:
    """The keys that a plan may set of a class."""
    told = meanings(cls)
    for one in fields(cls):
        if one.init:
            yield Key(one.name, kind_of(one), default_of(one), told.get(one.name, ""))


def kind_of(one: Field[Any]) -> str:
    """The type of a field in words."""
    kind = one.metadata.get("kind")
    if kind is not None:
        several = one.metadata.get("default") is None
        shown = f"[{kind}](#{kind})" if CATALOGUE[kind] else kind
        return f"{shown}, any number" if several else shown
    shown = one.type if isinstance(one.type, str) else getattr(one.type, "__name__", str(one.type))
    return f"`{shown}`".replace("typing.", "")


def default_of(one: Field[Any]) -> str:
    """The default of a field as a plan writes it."""
    if one.metadata.get("default") is not None:
        return f'`"{one.metadata["default"]}"`'
    if names := one.metadata.get("defaults"):
        return f"`{toml_of(names)}`"
    if one.default is not MISSING:
        return {None: "none", (): "none"}.get(one.default, f"`{toml_of(one.default)}`")
    return "a table" if one.default_factory is not MISSING else "**must be given**"


def toml_of(value: Any) -> str:
    """A plain value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_of, value))}]"
    return str(value)


def table(cls: type) -> list[str]:
    """The keys of a class as a table of Markdown; a sentence where it has none."""
    rows = [one.row() for one in keys(cls)]
    if not rows:
        return ["It has no keys."]
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows]


def page() -> str:
    """The whole page."""
    lines = [HEAD, "## The plan itself", "", *table(Plan), ""]
    for name, cls in TABLES.items():
        lines += [f"## `{name}`", "", summary(cls), "", *table(cls), ""]
    for kind in sorted(CATALOGUE):
        if not CATALOGUE[kind]:
            continue
        lines += [f"## {kind}", "", OPTIONS.get(kind) or key_of_kind(kind), ""]
        for name in sorted(CATALOGUE[kind]):
            cls = find(kind, name)
            lines += [f"### `{name}`", "", summary(cls), ""]
            lines += [*table(cls), ""] if has_keys(kind, cls) else []
    return "\n".join(lines).rstrip() + "\n"


def key_of_kind(kind: str) -> str:
    """The plan's key of a kind, in a sentence."""
    return f"Key of the plan: `{SLOTS.get(kind, kind)}`."


def has_keys(kind: str, cls: type) -> bool:
    """Whether a plan may set something of a part."""
    return kind != ENGINE and hasattr(cls, "__dataclass_fields__")


def undescribed() -> list[str]:
    """Keys of which nothing is said."""
    parts = {(kind, name): find(kind, name) for kind in CATALOGUE for name in CATALOGUE[kind]}
    found = {f"{kind} {name}": cls for (kind, name), cls in parts.items() if has_keys(kind, cls)}
    return [
        f"{where}: {key.name}"
        for where, cls in {"plan": Plan, **TABLES, **found}.items()
        for key in keys(cls)
        if not key.meaning
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(arguments)
    made = page()
    for one in undescribed():
        print(f"nothing is said of {one}", file=sys.stderr)
    if args.check:
        return int(made != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
