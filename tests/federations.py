"""Federations of real processes on this machine, and what their runs must have ended in."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from running import PLAN

from benchmarks.federation import Federation, federation

NODES = PLAN.replace("clients = 4", "clients = 3").replace("cohort = 2", "cohort = 3")
SCAFFOLD = NODES.replace("lr = 0.1", 'lr = 0.1, correction = "scaffold"')


@contextmanager
def three(
    root: Path,
    text: str,
    tls: bool = False,
    links: Mapping[int, Sequence[str]] = MappingProxyType({}),
    nodes: int = 3,
) -> Iterator[Federation]:
    """A SuperLink and three nodes, or so many, with their workers, some behind links with these
    flags."""
    with federation(root, tls) as here:
        plan = root / "plan.toml"
        plan.write_text(text)
        here.superlink()
        here.nodes(plan, nodes, links=links)
        yield here


def submit(here: Federation) -> "subprocess.Popen[bytes]":
    flags = ("--engine", "flower", "--federation", "here", "--out", here.root / "run")
    return here.fedpeft("run", "run", here.root / "plan.toml", *flags)
