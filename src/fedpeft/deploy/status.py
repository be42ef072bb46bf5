"""What a node's folder tells its owner: rounds answered, bytes, ε spent, refusals. No server is
asked, and nothing is changed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from fedpeft.core.accounting import epsilon
from fedpeft.core.types import ClientId, Event
from fedpeft.core.units import say_epsilon
from fedpeft.deploy.answers import ANSWERS
from fedpeft.deploy.consent import FILE
from fedpeft.deploy.refusals import REFUSALS, Refusal, Refusals
from fedpeft.errors import FedpeftError, RunError, reason_of, say_count
from fedpeft.plan.plan import Plan
from fedpeft.storage.files import private_folder, write_atomically

FACTS = "node.json"
TRAINED = "fit"
"""The phase whose answers noise hides, and privacy accounts for, unless a part hides its own."""


@dataclass
class RunAnswers:
    """What a node answered in one run.

    Attributes:
      rounds: by phase the rounds, from 1, in which its answer was sent or begun.
      sent: bytes of answers, each counted once however often the server fetched it.
      unsized: answers whose bytes an earlier version did not note.
      last: when the last answer was given, in local time.
    """

    rounds: dict[str, set[int]] = field(default_factory=dict)
    sent: int = 0
    unsized: int = 0
    last: str = ""


@dataclass(frozen=True)
class NodeStatus:
    """A node's work for one plan.

    Attributes:
      fingerprint: the plan's, which is the name of its folder.
      facts: what the node wrote when it began: `client`, `plan`, `rounds` and `privacy`.
      agreed: what its owner agreed to, in pairs of a word and a sentence.
      runs: by token, in their order.
      runs_agreed: how many runs of this plan the owner agreed to.
      more: how often there were further reasons than those of `refusals`.
      problem: why a file of it cannot be read; empty if all can.
    """

    fingerprint: str
    facts: Mapping[str, Any]
    agreed: Sequence[tuple[str, str]]
    runs: Mapping[str, RunAnswers]
    runs_agreed: int
    refusals: Sequence[Refusal]
    more: int
    problem: str

    @property
    def trained(self) -> int:
        """In how many rounds, over all runs, it trained."""
        return sum(len(run.rounds.get(TRAINED, ())) for run in self.runs.values())

    @property
    def released(self) -> int:
        """How many answers, over all runs, the plan's noise was added to."""
        phases = (self.facts.get("privacy") or {}).get("phases", [TRAINED])
        return sum(len(run.rounds.get(phase, ())) for run in self.runs.values() for phase in phases)

    @property
    def spent(self) -> str:
        """The ε that these rounds come to, in words."""
        if "privacy" not in self.facts:
            return "not known: this node was last started by an earlier version"
        private = self.facts["privacy"]
        if not private:
            return "none is accounted: the plan adds no noise that hides anything"
        try:
            event = Event(**private["event"])
            value = epsilon(event, self.released, private["delta"], private["accountant"])
        except (FedpeftError, KeyError, TypeError, AssertionError) as error:
            return f"cannot be computed: {reason_of(error)}"
        if not isfinite(value):
            return f"not bounded: the plan's noise gives no {event.unit} a guarantee"
        who = ", if the server adds the plan's noise" if event.central else ""
        what = "of training" if TRAINED in private.get("phases", [TRAINED]) else "of noisy sums"
        return (
            f"{say_epsilon(value)} at delta = {private['delta']:g} for one {event.unit}, after "
            f"{say_count(self.released, 'rounds')} {what}{who}"
        )


def keep_facts(folder: Path, plan: Plan, client: ClientId) -> None:
    """Write down what its status needs of a plan, so that nobody has to read the plan again."""
    part = plan.private_part
    private: dict[str, Any] = {}
    if part is not None and part.event.accounted:
        names = ("unit", "noise_multiplier", "rate", "times", "central", "accounted")
        private = {
            "event": {name: getattr(part.event, name) for name in names},
            "delta": plan.privacy.delta or 0.0,
            "accountant": plan.privacy.accountant,
            # a part that adds noise to answers of its own hides these, and no training
            "phases": sorted(part.handlers()) if hasattr(part, "handlers") else [TRAINED],
        }
    facts = {"client": client, "plan": plan.name, "rounds": plan.rounds, "privacy": private}
    place = private_folder(folder / plan.fingerprint) / FACTS
    write_atomically(place, json.dumps(facts, indent=2).encode(), private=True)


def is_node(folder: Path) -> bool:
    """Whether a folder is a node's."""
    return not (folder / "plan.toml").exists() and bool(_plans(folder))


def read_status(folder: Path) -> list[NodeStatus]:
    """The work of the node in a folder, by plan; that of the last one first.

    Raises:
      RunError: it is no node's folder, or cannot be read.
    """
    if not is_node(folder):
        raise RunError(f"{folder} is no node's folder: nothing was agreed to or answered there")
    try:
        return [_read(place) for place in sorted(_plans(folder), key=_changed, reverse=True)]
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.filename}: {error.strerror}") from None


def _plans(folder: Path) -> list[Path]:
    names = (ANSWERS, FILE, FACTS)
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [one for one in inside if any((one / name).is_file() for name in names)]


def _changed(place: Path) -> tuple[float, str]:
    files = [place / name for name in (ANSWERS, FILE, FACTS, REFUSALS)]
    return max(file.stat().st_mtime for file in files if file.exists()), place.name


def _read(place: Path) -> NodeStatus:
    runs, agreed, problem = _read_answers(place / ANSWERS)
    refusals, more = Refusals(place).read()
    lines = _read_table(place / FILE).get("lines")
    pairs = [tuple(map(str, one)) for one in lines] if isinstance(lines, list) else []
    return NodeStatus(
        place.name,
        _read_table(place / FACTS),
        [(one[0], one[1]) for one in pairs if len(one) == 2],
        runs,
        agreed,
        refusals,
        more,
        problem,
    )


def _read_answers(path: Path) -> tuple[dict[str, RunAnswers], int, str]:
    """What was answered by run, how many runs were agreed to, and what is wrong with the file."""
    runs: dict[str, RunAnswers] = {}
    agreed = 1
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            if "again" in values:
                agreed += 1
                continue
            _add(runs.setdefault(str(values["run"]), RunAnswers()), values)
        except (ValueError, KeyError, TypeError):
            return runs, agreed, f"{path.name} is damaged from line {number} on"
    return runs, agreed, ""


def _add(run: RunAnswers, values: Mapping[str, Any]) -> None:
    """Count one line: a message that is being answered, or was."""
    run.rounds.setdefault(str(values["phase"]), set()).add(int(values["round"]) + 1)
    if "reply" not in values:
        return
    run.sent += int(values.get("bytes", 0))
    run.unsized += "bytes" not in values
    run.last = str(values.get("at", run.last))


def _read_table(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
