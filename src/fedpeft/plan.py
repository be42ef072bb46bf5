"""An experiment, complete and frozen: everything a round needs to know, and nothing that
changes."""

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import Any

import tomli_w
from torch import Tensor, nn

from fedpeft.core.interfaces import (
    Aggregator,
    Attack,
    Codec,
    Exchange,
    Local,
    Method,
    Partition,
    Sampler,
    ServerOptimizer,
    Source,
    Stage,
    Task,
)
from fedpeft.core.seeds import fold, seeded
from fedpeft.core.types import Tensors
from fedpeft.data.short import source
from fedpeft.errors import PlanError
from fedpeft.fitting import check_batchnorm, check_parts, check_values, quantizes, shares
from fedpeft.guarantees import check_budget, check_calibration, private_part
from fedpeft.registry import construct, find, names, part, parts, settings_of

NORM_FACTOR = 100.0
"""Beyond what honest clients with a hundred times the usual examples come to."""
UPLINK = object()
"""Stands for the uplink's codec in a stage while a plan is read."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is learned from whom, how, and for how long.

    Attributes:
      cohort: clients per round.
      weighting: what a client counts in the mean: its number of "examples", or "uniform". "batches"
        is the number rounded up to a multiple of `local.batch_size`, a mistake of FedPEFT's
        published code, to compare with it.
      personal: patterns, as of file names, of trained tensors that never travel: each client keeps
        its own and starts from the initial ones. ["*"] is training without federation,
        ["classifier.*"] a personal head (FedPer, arXiv:1912.00818).
      ranks: of the clients' low-rank factors, dealt out in turn along the list of all clients; left
        out: the method's.
      head_start: "class_means" begins with a head from all clients' class means, one message more
        (FedNCM).
      head_rows: "class_counts" weights each row of the head by how many examples of its class a
        client has, which each client then tells.
      vote: strengths λ of a round's merge among which the clients choose, each also with uniform
        weights, by how well they do on examples set apart; of equals the first. Left out: no vote.
      vote_share: of each client's examples those that it sets apart; 0.2 if left out.
      min_replies: with fewer good replies a round changes nothing.
      norm_factor: an update may be so many times as long as the median of the last ones; infinity
        for any length. Left out: 100, or none where a guarantee for clients bounds the length, or
          secure aggregation hides it.
      attacks: what some clients do to the others, in simulations only.
      max_refusals: a client of which so many updates were refused is asked no more.
      threads: of one worker; the bits of a result depend on it.
      base_dtype: of the products with frozen weights: "float32" or "bfloat16". What is trained is
        float32.
      pack: whether frozen weights are laid out for the processor's matrix kernels: faster, for once
        or twice their memory; the last bits of a result depend on it.
      features: whether what a frozen beginning of the model makes of an example is computed once
        and kept in a file; the last bits of a result depend on it.
      classes: label names; empty for the data's own. Needed where the server holds no data.
      target_epsilon, delta: the guarantee after all rounds, from which a private part's
        noise_multiplier follows.
      accountant: "pld" or "rdp"; "pld" if left out.
      buffer: replies to an asynchronous step of the server (FedBuff, arXiv:2106.06639), with
        `cohort` clients at work at a time and `rounds` steps; synchronous rounds if left out.
      staleness: a of the factor (1 + τ)^(−a) of an update that began τ steps ago; 0.5 if left out.
      pace_spread: σ of the time exp(σ·z) that a client takes, z a standard normal of its own; 0.5
        if left out.
      evaluate_every: rounds between evaluations; the last round is always evaluated.
      nodes, deadline: whose data lie with them, and the seconds a round waits for them; simulations
        use neither.

    Raises:
      ValueError: a value out of range.
      PlanError: parts that do not fit together.
    """

    name: str = "run"
    task: Task = part("task", "image-classification")
    data: Source = part("data", "digits")
    partition: Partition = part("partition", "dirichlet")
    method: Method = part("method", "lora")
    local: Local = part("local", "descent")
    sampler: Sampler = part("sampler", "uniform")
    exchange: Exchange = part("exchange", "fit")
    aggregator: Aggregator = part("aggregator", "mean")
    server: ServerOptimizer = part("server", "average")
    stages: tuple[Stage, ...] = parts("stage")
    attacks: tuple[Attack, ...] = parts("attack")
    uplink: Codec = part("codec", "dense")
    downlink: Codec = part("codec", "dense")
    rounds: int = 10
    cohort: int = 8
    weighting: str = "examples"
    personal: tuple[str, ...] = ()
    ranks: tuple[int, ...] | None = None
    head_start: str | None = None
    head_rows: str | None = None
    vote: tuple[float, ...] | None = None
    vote_share: float | None = None
    min_replies: int = 1
    norm_factor: float | None = None
    max_refusals: int = 3
    seed: int = 1
    threads: int = 1
    base_dtype: str = "float32"
    pack: bool = True
    features: bool = True
    evaluate_every: int = 1
    classes: tuple[str, ...] = ()
    engine: str = "inprocess"
    target_epsilon: float | None = None
    delta: float | None = None
    accountant: str | None = None
    buffer: int | None = None
    staleness: float | None = None
    pace_spread: float | None = None
    nodes: tuple[str, ...] | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        check_values(self)
        check_parts(self)
        event = self.private_part.event if self.private_part else None
        check_budget(event, self.target_epsilon, self.delta, self.accountant)
        check_calibration(self, event)

    @property
    def private_part(self) -> Any:
        """The part of the local training or the stages that adds noise, or None."""
        return private_part(self.local, self.stages)

    @property
    def norm_bound(self) -> float:
        """How many times as long as is usual an update may be."""
        if self.norm_factor is not None:
            return self.norm_factor
        event = self.private_part.event if self.private_part else None
        return float("inf") if self.exchange.sums or (event and event.central) else NORM_FACTOR

    @property
    def local_shares(self) -> tuple[str, ...]:
        """Prefixes of what travels beside the method's tensors."""
        return shares(self.local)

    def personal_of(self, params: Tensors) -> dict[str, Tensor]:
        """Of the trained tensors, those that stay with the clients."""
        return {
            n: x
            for n, x in params.items()
            if any(fnmatchcase(n, pattern) for pattern in self.personal)
        }

    def model(self, classes: Sequence[str]) -> nn.Module:
        """The same weights on the server and on every client, frozen ones included."""
        with seeded(fold(self.seed, "model")):
            model = self.task.build(classes, self.method.pretrained)
            model.requires_grad_(False)
            try:
                model = self.method.inject(model)
            except RuntimeError as error:  # torch's word for codes that are asked for a gradient
                if not quantizes(self.task):
                    raise
                raise PlanError(
                    f"{type(self.method).__name__} cannot train what is quantized: leave out "
                    "task.quantize, or the "
                    f'method, e.g. for "lora" ({error})'
                ) from None
        check_batchnorm(model, self.method.names(model), private=self.local.event is not None)
        return model

    @property
    def unquantized(self) -> "Plan":
        """The same with the base's weights as they are saved."""
        task: Any = self.task
        return replace(self, task=replace(task, quantize=None)) if quantizes(task) else self

    @property
    def fingerprint(self) -> str:
        """A name for this experiment: equal plans have equal ones, whatever the engine and its
        patience."""
        settings = {
            key: value
            for key, value in settings_of(self).items()
            if key not in ("name", "engine", "deadline")
        }
        return blake2b(
            json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=8
        ).hexdigest()

    def toml(self) -> str:
        """The whole plan, defaults included, as the text that reads back to it.

        Raises:
          PlanError: a part was given in Python and has no name.
        """
        try:
            return tomli_w.dumps(settings_of(self))
        except TypeError as error:
            raise PlanError(
                "this plan holds what cannot be written to a file, such as data or a function "
                f"given in Python: {error}"
            ) from None


def read_plan(spec: Mapping[str, Any] | str | Path = "", overrides: Sequence[str] = ()) -> Plan:
    """Build a plan from plain values, from TOML text or a TOML file; then set `key=value` pairs,
    e.g. `local.lr=0.1`.

    Short forms: a part without settings is its name; `model` belongs to the task; `data` may be a
    file, a folder or a dataset of the hub, which is looked at here; a stage's `codec` is the
    uplink's, and follows it where it is set.

    Raises:
      PlanError: unreadable TOML, an unknown key or name, a value out of range.
    """
    values = _plain(spec)
    uplink = values.get("uplink", "dense")
    values["stages"] = _each(values.get("stages", []), lambda stage: _without_codec(stage, uplink))
    for override in overrides:
        _override(values, override)
    return construct(Plan, _expanded(values), "the plan", "plan")  # type: ignore[no-any-return]


def _plain(spec: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(spec, Mapping):
        return deepcopy(dict(spec))
    try:
        text = spec.read_text() if isinstance(spec, Path) else spec
        return tomllib.loads(text)
    except OSError as error:
        raise PlanError(f"the plan {spec} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"the plan is no TOML: {error}") from None


def _override(values: dict[str, Any], pair: str) -> None:
    path, equals, text = pair.partition("=")
    if not equals or not path.strip():
        raise PlanError(f"{pair!r} is not of the form key=value, e.g. local.lr=0.05")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
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
    return dict(value) if isinstance(value, Mapping) else None


def _expanded(values: dict[str, Any]) -> dict[str, Any]:
    """Short forms written out."""
    values = dict(values)
    if "model" in values:
        task = _table("task", values.get("task", {}))
        if task is None:
            raise PlanError(
                f"model = {values['model']!r} belongs to the task, but plan.task = "
                f"{values['task']!r} is neither a "
                "name nor a table"
            )
        values["task"] = {**task, "model": values.pop("model")}
    if isinstance(values.get("data"), str):
        values["data"] = _table("data", values["data"])
    uplink = values.get("uplink", "dense")
    values["stages"] = _each(values.pop("stages"), lambda stage: _with_codec(stage, uplink))
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


def _with_codec(stage: Any, uplink: Any) -> Any:
    """A stage that must know the uplink's codec (error feedback) need not be told twice."""
    spec = {"name": stage} if isinstance(stage, str) else stage
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        return spec
    if "codec" in spec:
        return {**spec, "codec": uplink} if spec["codec"] is UPLINK else spec
    cls = find("stage", spec["name"])
    wants = is_dataclass(cls) and any(f.name == "codec" for f in fields(cls))
    return {**spec, "codec": uplink} if wants else spec
