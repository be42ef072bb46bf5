"""In what plans differ, told as few axes with short values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

NONE = "none"
FIRST = ("method", "partition", "cohort", "rounds", "task", "data")
"""Keys by which a reader tells experiments apart soonest."""
KEPT = "method"


@dataclass(frozen=True)
class PlanAxis:
    """A plan key that differs, dots between keys.

    A part that is another one in some plans is one axis: its name, with what differs between parts
      of that name.

    Attributes:
      values: one for each plan, as text.
      numbers: the same where all are numbers, else empty.
      names: whether its values tell by themselves what they are of.
      told: whether it is needed to tell the plans apart; else its value follows from the others.
      short: the last part of its path, or all of it where another axis ends alike.
    """

    path: str
    values: tuple[str, ...]
    numbers: tuple[float, ...] = ()
    names: bool = False
    told: bool = True
    short: str = ""

    def words(self, k: int) -> str:
        """What it says of plan k: "lora", "alpha 0.1"."""
        return self.values[k] if self.names else f"{self.short} {self.values[k]}"

    def order(self) -> list[str]:
        """Its values, each once: numbers upwards, others as the plans come."""
        if self.numbers:
            return [text for _, text in sorted(set(zip(self.numbers, self.values, strict=True)))]
        return list(dict.fromkeys(self.values))


def axes(plans: Sequence[Mapping[str, Any]]) -> list[PlanAxis]:
    """In what these plans, no two of them equal, differ; first by what a reader looks at first.

    Those that are not `told` are dropped one by one, the least telling first, as long as the others
    tell all plans apart: a learning rate chosen for each method makes no axis of its own.
    """
    plans = list(map(_without_repeats, plans))
    found = sorted(_shorten(_differences("", plans)), key=lambda axis: _rank(axis.path))
    told = list(found)
    for axis in reversed(found):
        rest = [other for other in told if other is not axis]
        if axis.path != KEPT and len(
            {tuple(a.values[k] for a in rest) for k in range(len(plans))}
        ) == len(plans):
            told = rest
    return [replace(axis, told=any(axis is other for other in told)) for axis in found]


def label(told: Sequence[PlanAxis], k: int) -> str:
    """What plan k is called: what it has of what differs; what it has none of is not said."""
    words = [(axis.words(k), axis.values[k]) for axis in told if axis.told]
    return ", ".join(
        [word for word, value in words if value != NONE] or [word for word, _ in words[:1]]
    )


def _without_repeats(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """A plan whose stages do not repeat the uplink's codec, as written plans do: it would be told
    twice."""
    stages, uplink = plan.get("stages"), plan.get("uplink")
    if not isinstance(stages, list):
        return plan
    told = [
        {key: x for key, x in stage.items() if key != "codec" or x != uplink}
        if isinstance(stage, Mapping)
        else stage
        for stage in stages
    ]
    return {**plan, "stages": told}


def _shorten(found: Sequence[PlanAxis]) -> list[PlanAxis]:
    ends = [axis.path.rpartition(".")[2] for axis in found]
    return [
        replace(axis, short=end if ends.count(end) == 1 else axis.path)
        for axis, end in zip(found, ends, strict=True)
    ]


def _rank(path: str) -> tuple[int, str]:
    head = path.partition(".")[0]
    return (FIRST.index(head) if head in FIRST else len(FIRST), path)


def _differences(path: str, values: Sequence[Any]) -> list[PlanAxis]:
    values = list(map(_table, values))
    if _are_equal(values):
        return []
    tables = [value for value in values if isinstance(value, dict)]
    if not tables:
        return [_plain(path, values)]
    of_one_part = not path or _are_equal([table.get("name") for table in tables])
    if len(tables) < len(values) or not of_one_part:
        return [PlanAxis(path, tuple(_parts(values)), names=True)]
    found = []
    for key in dict.fromkeys(chain.from_iterable(tables)):
        inner = ".".join(filter(None, (path, key)))
        found += _differences(inner, [table.get(key) for table in tables])
    return found


def _are_equal(values: Sequence[Any]) -> bool:
    return len({json.dumps(value, sort_keys=True, default=str) for value in values}) < 2


def _table(value: Any) -> Any:
    """A list of parts as a table by name, so that one part of it may differ."""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(part, dict) and "name" in part for part in value)
    ):
        by_name = {str(part["name"]): part for part in value}
        return by_name if len(by_name) == len(value) else value
    return dict(value) if isinstance(value, Mapping) else value


def _plain(path: str, values: Sequence[Any]) -> PlanAxis:
    if any(isinstance(value, bool) for value in values):
        values = [value or False for value in values]
    texts = tuple(map(_text, values))
    numbers = tuple(values) if all(map(_is_number, values)) else ()
    return PlanAxis(path, texts, numbers, names=all(isinstance(v, str) and v for v in values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if value in (None, [], ""):
        return NONE
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.12g}"
        case str():
            return value
        case list() if all(isinstance(one, str) for one in value):
            return ", ".join(value)
    return json.dumps(value, default=str)


def _parts(values: Sequence[Any]) -> list[str]:
    """Each part's name, with what tells it from other parts of that name: "adapter (shared)", "lora
    (rank 4)"."""
    kinds = [_kind(value) for value in values]
    texts = list(kinds)
    for kind in set(kinds):
        peers = [k for k, other in enumerate(kinds) if other == kind]
        inner = _shorten(_differences("", [values[k] for k in peers]))
        for place, k in enumerate(peers):
            words = ", ".join(filter(None, (_setting(axis, place) for axis in inner)))
            texts[k] = f"{kind} ({words})" if words else kind
    return texts


def _kind(value: Any) -> str:
    if not isinstance(value, dict):
        return _text(value)
    return str(value.get("name") or " + ".join(value) or NONE)


def _setting(axis: PlanAxis, k: int) -> str:
    """A switch that is on is its name, one that is off nothing."""
    if set(axis.values) <= {"yes", "no"}:
        return axis.short if axis.values[k] == "yes" else ""
    return axis.words(k)
