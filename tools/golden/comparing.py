"""In what two records of the same plan differ."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tools.golden.records import Record

SECTIONS = PARAMETERS, BYTES, LEDGER = ("parameters", "bytes", "ledger")
COUNTED = ("down", "up", "bytes_down", "bytes_up", "up_headers")
"""Keys of a client in a round, and of a round, that count bytes."""
ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """One thing in which two runs differ.

    Attributes:
      section: one of SECTIONS.
      words: what differs and where, for people.
    """

    section: str
    words: str


def differences(old: Record, new: Record, bytes_vary: int = 0) -> list[Difference]:
    """All differences, parameters first, then round by round; a client's bytes of a round differ
    where they are more than bytes_vary apart."""
    found = [Difference(PARAMETERS, words) for words in _parameters(old, new)]
    if len(old.rounds) != len(new.rounds):
        words = f"{len(old.rounds)} rounds became {len(new.rounds)}"
        found.append(Difference(LEDGER, words))
    for number, (before, after) in enumerate(zip(old.rounds, new.rounds, strict=False), 1):
        found.extend(_round(f"round {number}", before, after, bytes_vary))
    return found


def _parameters(old: Record, new: Record) -> Iterator[str]:
    every = sorted(old.parameters.keys() | new.parameters.keys())
    unlike = [name for name in every if old.parameters.get(name) != new.parameters.get(name)]
    among = f" ({len(unlike)} of {len(every)} tensors differ)"
    for name in unlike:
        if name not in new.parameters:
            yield f"the tensor {name} is gone{among}"
        elif name not in old.parameters:
            yield f"the tensor {name} is new{among}"
        else:
            yield f"the tensor {name} has other bits{among}"


def _round(
    where: str, old: Mapping[str, Any], new: Mapping[str, Any], vary: int
) -> Iterator[Difference]:
    before, after = old.get("clients", {}), new.get("clients", {})
    for client in sorted(before.keys() | after.keys()):
        place = f"{where}, client {client}"
        if client not in after or client not in before:
            what = "is gone" if client in before else "is new"
            yield Difference(LEDGER, f"{place} {what}")
            continue
        yield from _values(place, before[client], after[client], vary)
    without, now = ({k: x for k, x in one.items() if k != "clients"} for one in (old, new))
    yield from _values(where, without, now, vary * len(before))


def _values(
    where: str, old: Mapping[str, Any], new: Mapping[str, Any], vary: int
) -> Iterator[Difference]:
    """What differs between two tables; a key without a value, or a new one that is empty, is as
    good as none."""
    before, after = ({key: x for key, x in one.items() if x is not None} for one in (old, new))
    for key in sorted(before.keys() | after.keys()):
        one, other = before.get(key, ABSENT), after.get(key, ABSENT)
        if one is ABSENT and other == {}:
            continue
        inner, counted = _first_difference(key, one, other), key in COUNTED
        if inner and not (counted and _near(one, other, vary)):
            yield Difference(BYTES if counted else LEDGER, f"{where}: {inner}")


def _near(old: Any, new: Any, vary: int) -> bool:
    """Whether two numbers of bytes are no further apart than from run to run."""
    return isinstance(old, int) and isinstance(new, int) and abs(old - new) <= vary


def _first_difference(path: str, old: Any, new: Any) -> str:
    """Where two plain values differ first, in words; nothing where they are the same to the bit."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys: Iterable[Any] = sorted(old.keys() | new.keys())
        inside = (
            _first_difference(f"{path}.{key}", old.get(key, ABSENT), new.get(key, ABSENT))
            for key in keys
        )
        return next(filter(None, inside), "")
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        inside = (_first_difference(f"{path}[{number}]", *pair) for number, pair in pairs)
        return next(filter(None, inside), "")
    before, after = _shown(old), _shown(new)
    return "" if before == after else f"{path} was {before} and is {after}"


def _shown(value: Any) -> str:
    """The text of a value, which tells 1 from 1.0 and 0.0 from -0.0."""
    return "absent" if value is ABSENT else repr(value)
