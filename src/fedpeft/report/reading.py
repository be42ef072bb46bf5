"""Run folders as a report reads them: plain values, checked where they enter; nothing that they
name is imported.

A kept cell, which holds only plan.toml, rounds.jsonl, summary.json and perhaps partition.json, is
as good as the folder of a run.
"""

import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedpeft.errors import RunError
from fedpeft.report.schema import (
    Benchmarks,
    KeptArrivals,
    KeptAudit,
    KeptCurves,
    KeptDivision,
    KeptOwners,
    KeptPictures,
    KeptRound,
    Samples,
    Summary,
)
from fedpeft.runs.folder import RunFolder, read_json, read_rounds

RESULT_IS_THE_SAME = ("seed", "name", "engine", "evaluate_every")
"""Keys in which plans of one experiment may differ: the seed is what a mean is over, the others
change no result."""
CALIBRATED = ("noise_multiplier",)
"""Keys that a run sets itself where its plan has a target_epsilon; they follow from it and from the
seed."""


@dataclass(frozen=True)
class KeptRun:
    """One run.

    Attributes:
      path: its folder, as it was given or found.
      plan: plan.toml as plain values.
      summary: None if the run is not finished.
    """

    path: Path
    plan: Mapping[str, Any]
    planned: int
    seed: int
    rounds: Sequence[KeptRound]
    summary: Summary | None
    division: KeptDivision | None
    samples: Samples | None
    benchmarks: Benchmarks
    pictures: KeptPictures | None
    audit: KeptAudit | None = None
    arrivals: KeptArrivals | None = None
    asked_owners: KeptOwners | None = None
    curves: KeptCurves | None = None

    @property
    def owners(self) -> KeptOwners | None:
        """What owners measured: as they were asked last by `fedpeft evaluate`, or else in the run's
        last evaluation."""
        return self.asked_owners or (self.summary.owners if self.summary else None)

    @property
    def finished(self) -> bool:
        return self.summary is not None

    @property
    def experiment(self) -> Mapping[str, Any]:
        """The plan without what does not matter to the result, and without the seed.

        What is switched off is left out: a key that a plan is too old to have is off in it. So is
          noise that follows
        from a target: how often a client takes part, and with it the noise, depends on the seed.
        """
        return _on(
            {key: value for key, value in self.asked.items() if key not in RESULT_IS_THE_SAME}
        )

    @property
    def asked(self) -> Mapping[str, Any]:
        """The plan without the noise that was calibrated to its target: a run of any seed finds its
        own."""
        return _without(CALIBRATED, self.plan) if self.plan.get("target_epsilon") else self.plan

    @property
    def identity(self) -> str:
        """Equal for runs of the same experiment."""
        return json.dumps(self.experiment, sort_keys=True, default=str)

    def measured(self, name: str) -> dict[int, float]:
        """A held-out metric by round, where it was measured and is finite."""
        found = {r.round: (r.held_out or {}).get(name) for r in self.rounds}
        return {at: value for at, value in found.items() if value is not None}


def _on(table: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is false, empty text, an empty list or a table of nothing else, in inner tables
    too."""
    inner = {key: _inside(value) for key, value in table.items()}
    return {
        key: value
        for key, value in inner.items()
        if value is not False and value not in (None, "", [], {})
    }


def _without(keys: Sequence[str], value: Any) -> Any:
    """Without these keys, in inner tables too."""
    if isinstance(value, list):
        return [_without(keys, one) for one in value]
    if not isinstance(value, Mapping):
        return value
    return {key: _without(keys, inner) for key, inner in value.items() if key not in keys}


def _inside(value: Any) -> Any:
    if isinstance(value, list):
        return [_inside(one) for one in value]
    return _on(value) if isinstance(value, Mapping) else value


def find_runs(paths: Sequence[Path]) -> Iterator[Path]:
    """The run folders at or below `paths`, each once, by name; links are not followed."""
    seen = set()
    for path in paths:
        for folder, inside, files in os.walk(path):
            inside.sort()
            if "plan.toml" not in files:
                continue
            inside.clear()  # there are no runs in a run
            if (real := Path(folder).resolve()) not in seen:
                seen.add(real)
                yield Path(folder)


def read_cells(paths: Sequence[Path]) -> tuple[list[KeptRun], list[str]]:
    """The runs at or below `paths`, and a line for each thing that is none or is left out.

    Raises:
      RunError: no run is left.
    """
    cells: list[KeptRun] = []
    problems = [f"{path} is no folder" for path in paths if not path.is_dir()]
    first: dict[tuple[str, int], KeptRun] = {}
    for path in find_runs(paths):
        try:
            cell = read_cell(path)
        except RunError as error:
            problems.append(str(error))
            continue
        same = first.setdefault((cell.identity, cell.seed), cell)
        if same is cell:
            cells.append(cell)
        elif cell.finished and not same.finished:
            cells[cells.index(same)] = first[cell.identity, cell.seed] = cell
            problems.append(_twice(same, cell))
        else:
            problems.append(_twice(cell, same))
    if not cells:
        where = ", ".join(map(str, paths))
        raise RunError("; ".join([*problems, f"there is no run to report below {where}"]))
    return cells, problems


def _twice(left_out: KeptRun, kept: KeptRun) -> str:
    return f"{left_out.path} is left out: it has the plan and the seed of {kept.path}"


def read_cell(path: Path) -> KeptRun:
    """The run in the folder `path`.

    Raises:
      RunError: a file of it cannot be read.
    """
    folder = RunFolder(path)
    try:
        plan = tomllib.loads(folder.plan.read_bytes().decode())
        about = _check(_Plan, plan, folder.plan)
        rounds = [
            read_line(line, folder.rounds, f"line {k}: ")
            for k, line in enumerate(read_rounds(folder), 1)
        ]
        files = (folder.summary, folder.partition, folder.samples, folder.pictures, folder.audit)
        summary, division, samples, pictures, audit = map(read_json, files)
        return KeptRun(
            path,
            plan,
            about.rounds,
            about.seed,
            rounds,
            _check_or_none(Summary, summary, folder.summary),
            _check_or_none(KeptDivision, division, folder.partition),
            _check_or_none(Samples, samples, folder.samples),
            _check(Benchmarks, read_json(folder.benchmarks) or {}, folder.benchmarks),
            _check_or_none(KeptPictures, pictures, folder.pictures),
            _check_or_none(KeptAudit, audit, folder.audit),
            _read_arrivals(folder),
            _check_or_none(KeptOwners, read_json(folder.owners), folder.owners),
            _check_or_none(KeptCurves, read_json(folder.curves), folder.curves),
        )
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.filename}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def read_line(values: Mapping[str, Any], path: Path, where: str = "") -> KeptRound:
    """One round, of the plain values that a line of rounds.jsonl has.

    Raises:
      RunError: they are damaged; the message names `path` and `where` in it.
    """
    told: KeptRound = _check(KeptRound, values, path, where)
    return told


def _read_arrivals(folder: RunFolder) -> KeptArrivals | None:
    """Of a merge that measured after each file."""
    found = read_json(folder.arrivals)
    return None if found is None else _check(KeptArrivals, found, folder.arrivals)


@dataclass(frozen=True)
class _Plan:
    rounds: int
    seed: int


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _check_or_none(kind: type, values: Mapping[str, Any] | None, path: Path) -> Any:
    return None if values is None else _check(kind, values, path)


def _check(kind: type, values: Mapping[str, Any], path: Path, where: str = "") -> Any:
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RunError(f"{path} is damaged: {where}{key}: {first['msg']}") from None
