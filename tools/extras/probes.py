"""What is tried of each extra, from probes.toml, and what came of it in words."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROBES = Path(__file__).with_name("probes.toml")


@dataclass(frozen=True)
class Probe:
    """Shell commands about one extra; `says` are the words that a message without it must have."""

    extra: str
    prepare: str
    use: str
    without: str
    says: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """A command's exit status and all that it printed."""

    code: int
    text: str

    @property
    def last(self) -> str:
        """The last line that is not blank, at most 200 characters."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return lines[-1][-200:] if lines else "it said nothing"


@dataclass(frozen=True)
class Row:
    """What came of one extra; MB are those of its own packages on disk."""

    extra: str
    installs: str
    runs: str
    without: str

    @property
    def good(self) -> bool:
        """Whether nothing is to be mended."""
        return (self.runs, self.without) == ("yes", "named")


def read_probes(
    project: Mapping[str, Sequence[str]], path: Path = PROBES
) -> tuple[dict[str, Probe], dict[str, str]]:
    """The probes by extra, and the extras without one, by the reason.

    Args:
      project: the requirements of each extra, as pyproject.toml has them.

    Raises:
      ValueError: an extra has no table, or a table no extra.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    if odd := sorted(tables.keys() ^ project.keys()):
        raise ValueError(f"only one of pyproject.toml and {path.name} has {', '.join(odd)}")
    apart = {name: table["apart"] for name, table in tables.items() if "apart" in table}
    found = {
        name: Probe(
            name,
            table.get("prepare", ""),
            table["use"],
            table.get("without", table["use"]),
            tuple(table.get("says") or usual_words(name, project[name])),
        )
        for name, table in tables.items()
        if name not in apart
    }
    return found, apart


def usual_words(extra: str, packages: Sequence[str]) -> list[str]:
    """What a message must have: the extra, and its packages for those who have no registry that
    knows fedpeft."""
    return [f"fedpeft[{extra}]", *(Requirement(one).name for one in packages)]


def judge_use(ended: Ended) -> str:
    """`yes`, or how it failed."""
    return "yes" if ended.code == 0 else f"no: {ended.last}"


def judge_without(ended: Ended, says: Sequence[str]) -> str:
    """`named` where the command fails and its message has all of `says`, else what is wrong."""
    if ended.code == 0:
        return "works without it"
    if "Traceback (most recent call last)" in ended.text and "fedpeft" in says[0]:
        return f"ends with a traceback: {ended.last}"
    said = re.sub(r"\s+", "", ended.text)  # lines of a terminal break anywhere
    missing = [one for one in says if re.sub(r"\s+", "", one) not in said]
    return f"not named: {', '.join(missing)}" if missing else "named"


def write_table(rows: Sequence[Row], apart: Mapping[str, str]) -> str:
    """The rows as Markdown, and a line for each extra that was not tried."""
    lines = [
        "| extra | packages, MB | its feature runs | missing, it is named |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{one.extra}` | {one.installs} | {one.runs} | {one.without} |" for one in rows]
    lines += ["", *(f"`{name}` was not tried: {why}." for name, why in apart.items())]
    return "\n".join(lines)
