"""Plans as people write them: TOML with short forms, of this version or of the first."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from fedpeft.data.short_forms import source
from fedpeft.errors import PlanError
from fedpeft.plan.convert import convert
from fedpeft.plan.phases import Schedule, check_span, take_schedules
from fedpeft.plan.plan import SCHEMA, Plan
from fedpeft.plan.values import remembers, remembers_training
from fedpeft.registry import OWN, Code, construct, find, names, settings_of
from fedpeft.storage.text_files import read_text

SHARING = ("shares", "shares_examples")
"""The hooks by which parts send tensors beside the parameters."""
UPLINK = object()
"""Stands for the uplink's codec in a stage while a plan is read."""


def read_plan(
    spec: Mapping[str, Any] | str | Path = "", overrides: Sequence[str] = (), code: Code = OWN
) -> Plan:
    """Build a plan from plain values, from TOML text or a TOML file; then set `key=value` pairs,
    e.g. `local.lr=0.1`.

    Short forms: a part without settings is its name; `model` belongs to the task; `data` may be a
    file, a folder or a dataset of the hub, which is looked at here. A stage's `codec` is the
    uplink's, and follows it where it is set. Keys of version 1 are converted, with one line in the
    log that says what they are called now.

    Args:
      code: which modules the plan may name; `REGISTERED` for a plan that somebody else may have
        written.

    Raises:
      PlanError: unreadable TOML, an unknown key or name, a value out of range, a module that `code`
        does not allow.

    >>> plan = read_plan('method = "lora"', ["rounds=3", "local.lr=0.005"])
    >>> plan.rounds, plan.local.lr, plan.method.rank
    (3, 0.005, 8)
    >>> read_plan({"rounds": -1})
    Traceback (most recent call last):
    fedpeft.errors.PlanError: rounds must be at least 0, got -1
    """
    values = _plain(spec)
    uplink = values.get("uplink", "dense")
    # Before the overrides: one of them may set the uplink, which such a stage is to follow.
    values["stages"] = _each(values.get("stages", []), lambda stage: _without_codec(stage, uplink))
    for override in overrides:
        set_key(values, override)
    if values.get("schema", SCHEMA) not in (1, SCHEMA):
        raise PlanError(
            f"this plan is of version {values['schema']!r}, and this fedpeft reads versions 1 and "
            f"{SCHEMA}: use a newer fedpeft"
        )
    values, changes = convert(values)
    if changes:
        getLogger("fedpeft").info("keys of plan version 1: %s", "; ".join(changes))
    values, schedules = take_schedules(values)
    if schedules:
        values["schedule"] = [*values.get("schedule", []), *schedules]
    built: Plan = construct(Plan, _expand(values, code), "the plan", "plan", code)
    _check_rounds(built, code)
    return built


def plan_at(plan: Plan, round: int, code: Code = OWN) -> Plan:
    """The plan of one round, counted from 0, with its phase and its schedules resolved.

    Args:
      code: which modules a phase may name; any in a plan that was read, since its phases were
        looked at then.

    Raises:
      PlanError: a phase makes parts meet that do not fit together.
    """
    if not plan.changes:
        return plan
    values = settings_of(plan)
    phases, schedules = values.pop("phase"), values.pop("schedule")
    pairs = [f"{one['key']}={Schedule(**one).at(round, plan.rounds)!r}" for one in schedules]
    now = next((p for p in phases if p.get("until") is None or round < p["until"]), None)
    # A phase comes last and so wins over a schedule. The plan is read anew, so that parts that meet
    # in this round alone are checked too.
    built = read_plan(values, [*pairs, *(now["set"] if now else ())], code)
    if getattr(built.downlink, "follows", False) != getattr(plan.downlink, "follows", False):
        raise PlanError(
            f"round {round} has a downlink of changes and other rounds have none, so that clients "
            "would hold nothing that it changes: set the downlink for all rounds, not in a phase"
        )
    _check_shares(plan, built, round)
    if plan.private_part is not None or built.private_part is not None:
        _check_private(plan, built, round)
    return built


def rounds_to_check(plan: Plan) -> list[int]:
    """The first round, the last one and the first of each phase: all parts that the plan ever has
    are in the plans of these rounds, ascending."""
    ends = [phase.until for phase in plan.phase if phase.until is not None]
    return sorted({0, plan.rounds - 1, *(end for end in ends if end < plan.rounds)})


def phase_plans(plan: Plan) -> dict[int, Plan]:
    """The plans of all phases, by a round of each."""
    if not plan.changes:
        return {0: plan}
    return {round: plan_at(plan, round) for round in rounds_to_check(plan)}


def ever_remembers(plan: Plan) -> bool:
    """Whether clients keep something in any phase."""
    return any(remembers(plan_at(plan, round)) for round in rounds_to_check(plan))


def has_kept(plan: Plan, round: int) -> bool:
    """Whether a client that trained in a round must have a memory of it: a phase may have had
    nothing to remember."""
    return not plan.changes or remembers_training(plan_at(plan, round))


def _check_rounds(plan: Plan, code: Code) -> None:
    """Read the plans of the rounds at which something changes, so that errors come before work."""
    check_span(plan)
    if plan.changes:
        for round in rounds_to_check(plan):
            plan_at(plan, round, code)


def _check_shares(plan: Plan, now: Plan, round: int) -> None:
    """Raises PlanError where a phase changes what travels beside the parameters: the run begins
    with that of the plan, and goes on with it from round to round."""
    had, has = (_find_sharing(each) for each in (plan, now))
    if changed := sorted({*had} ^ {*has}):
        raise PlanError(
            f"{changed[0]} sends tensors beside the parameters in some rounds and not in round "
            f"{round} or the plan itself: set it for all rounds, not in a phase"
        )


def _find_sharing(plan: Plan) -> list[str]:
    """The parts that send tensors beside the parameters."""
    found = (one for one in plan.parts if any(hasattr(one, hook) for hook in SHARING))
    return [type(one).__name__ for one in found]


def _check_private(plan: Plan, now: Plan, round: int) -> None:
    same = ("private_part", "sampler", "cohort", "local_shares", "weighting")
    for name in same:
        if getattr(plan, name) != getattr(now, name):
            raise PlanError(
                f"round {round} has another {name} than the plan, and its noise is accounted for "
                "over all rounds alike: leave it out of the phases and schedules"
            )


def _plain(spec: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(spec, Mapping):
        return deepcopy(dict(spec))
    try:
        text = read_text(spec) if isinstance(spec, Path) else spec
        return tomllib.loads(text)
    except OSError as error:
        raise PlanError(f"the plan {spec} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"the plan is no TOML: {error}") from None


def set_key(values: dict[str, Any], pair: str) -> None:
    """Set one `key=value` pair, dots between keys, in a plan's plain values.

    Raises:
      PlanError: it is no such pair, or its key leads through what has no keys.
    """
    path, equals, text = pair.partition("=")
    if not equals or not path.strip():
        raise PlanError(f"{pair!r} is not of the form key=value, e.g. local.lr=0.05")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # A word without quotes is a text, so that `engine=processes` needs no quotes within quotes
        # in a shell.
        value = text.strip()
    *parents, last = path.strip().split(".")
    for depth, key in enumerate(parents, start=1):
        inner = _table(key, values.get(key, {}))
        if inner is None:
            parent = ".".join(parents[:depth])
            raise PlanError(
                f"{pair!r}: {parent} is {values[key]!r}, which has no keys; set {parent} itself"
            )
        values[key] = inner
        values = inner
    values[last] = value


def _table(key: str, value: Any) -> dict[str, Any] | None:
    """A part's name as a table to which keys can be added; a copy of a table; None for anything
    else."""
    if isinstance(value, str):
        return source(value, names("data")) if key == "data" else {"name": value}
    if not isinstance(value, Mapping):
        return None
    return _with_source(dict(value)) if key == "data" else dict(value)


def _with_source(value: dict[str, Any]) -> dict[str, Any]:
    """A table of data in which a file or folder stands for a name, as it may alone."""
    name = value.get("name")
    if not isinstance(name, str) or name in names("data") or ":" in name or "path" in value:
        return value
    return {**value, **source(name, names("data"))}


def _expand(values: dict[str, Any], code: Code) -> dict[str, Any]:
    """Short forms written out."""
    values = dict(values)
    if "model" in values:
        task = _table("task", values.get("task", {}))
        if task is None:
            raise PlanError(
                f"model = {values['model']!r} belongs to the task, but plan.task = "
                f"{values['task']!r} is neither a name nor a table"
            )
        values["task"] = {**task, "model": values.pop("model")}
    if isinstance(values.get("data"), (str, Mapping)):
        values["data"] = _table("data", values["data"])
    uplink = values.get("uplink", "dense")
    values["stages"] = _each(values.pop("stages"), lambda stage: _with_codec(stage, uplink, code))
    return values


def _each(stages: Any, change: Callable[[Any], Any]) -> Any:
    """The stages changed one by one, or the only one."""
    return (
        [change(stage) for stage in stages] if isinstance(stages, (list, tuple)) else change(stages)
    )


def _without_codec(stage: Any, uplink: Any) -> Any:
    """A plan written out in full repeats the uplink's codec: such a stage takes what the uplink is
    in the end."""
    if not isinstance(stage, Mapping) or "codec" not in stage:
        return stage
    mine, uplinks = (_table("codec", codec) for codec in (stage["codec"], uplink))
    return {**stage, "codec": UPLINK} if mine is not None and mine == uplinks else stage


def _with_codec(stage: Any, uplink: Any, code: Code) -> Any:
    """A stage that must know the uplink's codec (error feedback) need not be told twice."""
    spec = {"name": stage} if isinstance(stage, str) else stage
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        return spec
    if "codec" in spec:
        return {**spec, "codec": uplink} if spec["codec"] is UPLINK else spec
    cls = find("stage", spec["name"], code, "plan.stages")
    wants = is_dataclass(cls) and any(f.name == "codec" for f in fields(cls))
    return {**spec, "codec": uplink} if wants else spec
