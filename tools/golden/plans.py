"""The plans, as each version of the library reads them."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

FILE = Path(__file__).with_name("plans.toml")
VERSIONS = (1, 2)
SECOND, STEPS, VARY, SLOW = OWN = ("v2", "steps", "bytes_vary", "slow")
STEPS_KNOWN = ("run", "merge")


@dataclass(frozen=True)
class GoldenPlan:
    """A small plan.

    Attributes:
      steps: "run", or "merge" for one that is invited to, contributed to and merged.
      texts: its TOML by the version of the schema.
      bytes_vary: by how many a client's bytes of a round may differ from run to run.
      slow: whether it is left out unless it is asked for.
    """

    name: str
    steps: str
    texts: Mapping[int, str]
    bytes_vary: int = 0
    slow: bool = False


def read_plans(text: str) -> list[GoldenPlan]:
    """The plans of a file such as `plans.toml`, in its order.

    Raises:
      ValueError: a plan asks for steps that do not exist.
    """
    values = tomllib.loads(text)
    return [_plan(name, values["base"], own) for name, own in values["plans"].items()]


def _plan(name: str, base: Mapping[str, Any], own: Mapping[str, Any]) -> GoldenPlan:
    steps = own.get(STEPS, "run")
    if steps not in STEPS_KNOWN:
        raise ValueError(f"plans.{name}.steps = {steps!r}: set it to one of {STEPS_KNOWN}")
    texts = {
        version: tomli_w.dumps({"name": name, **_keys(base, version), **_keys(own, version)})
        for version in VERSIONS
    }
    return GoldenPlan(name, steps, texts, own.get(VARY, 0), own.get(SLOW, False))


def _keys(table: Mapping[str, Any], version: int) -> dict[str, Any]:
    chosen = table.get(SECOND, table) if version > 1 else table
    return {key: value for key, value in chosen.items() if key not in OWN}
