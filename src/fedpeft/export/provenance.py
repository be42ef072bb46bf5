"""Where an exported folder comes from, for programs: `ro-crate-metadata.json`.

It is an RO-Crate 1.1 (https://w3id.org/ro/crate/1.1) by the profile Process Run Crate 0.5
(https://w3id.org/ro/wfrun/process/0.5). The run is one action: fedpeft made the files of the folder
of a plan and a base model, with clients as participants. Clients have numbers here, no names.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias
from urllib.parse import quote

from fedpeft import __version__
from fedpeft.core.numbering import number_ranges
from fedpeft.errors import say_count
from fedpeft.export.base_files import ListedFile, list_base_files, list_file
from fedpeft.export.model_card import base_name
from fedpeft.results.result import Result
from fedpeft.runs.folder import read_json, read_rounds

CRATE, PLAN = "ro-crate-metadata.json", "fedpeft-plan.toml"
"""The plan is not called plan.toml: a folder with such a file is a run's."""
VERSION = "https://w3id.org/ro/crate/1.1"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
# The context of 1.1 is older than schema.org's term for this.
CONTEXT = [f"{VERSION}/context", {"sha256": "http://schema.org/sha256"}]
FORMATS = {
    ".json": "application/json",
    ".md": "text/markdown",
    ".py": "text/x-python",
    ".toml": "application/toml",
    ".txt": "text/plain",
}
CLIENTS = 1000
"""The most clients that are described one by one."""
EPOCH = "SOURCE_DATE_EPOCH"
"""The usual variable by which builders fix the time that goes into what they make."""
Entity: TypeAlias = dict[str, Any]


def write_provenance(
    result: Result, folder: Path, options: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Write the plan and the crate into a folder that holds everything else already.

    Equal folders of the same run get equal bytes: the only time in it is that at which the run
    wrote its result, or SOURCE_DATE_EPOCH.

    Args:
      options: what was asked of the export, by the names of the command's options.
    """
    (folder / PLAN).write_text(result.plan.toml(), encoding="utf-8")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CRATE)
    graph = describe_run(result, [list_file(path, folder) for path in files], options)
    text = json.dumps({"@context": CONTEXT, "@graph": graph}, indent=2, ensure_ascii=False)
    (folder / CRATE).write_text(text + "\n", encoding="utf-8")


def describe_run(
    result: Result, files: Sequence[ListedFile], options: Mapping[str, Any]
) -> list[Entity]:
    """The entities of the crate: the folder, the run, what went in and what came out."""
    # a plan of no rounds has a line too, of who answered without them
    done = result.checkpoint.state.round if result.plan.rounds else 1
    rounds = read_rounds(result.folder)[:done]
    made, base = _time(result), _base(result)
    software = list(_software(result))
    inputs = [*_inputs(result), *_values("export-option", options)]
    outputs, clients = list(_outputs(result, rounds)), list(_participants(rounds))
    parts = [_file(one) for one in files]
    plan = next(one for one in parts if one["@id"] == PLAN)
    run = {
        "@id": "#run",
        "@type": "CreateAction",
        "name": f"Federated fine-tuning of {base_name(result)} with {result.method}",
        "description": _told(result, rounds),
        "instrument": _links(software[:1])[0],
        "object": _links([plan, base[0], *inputs]),
        "result": _links([*(one for one in parts if one is not plan), *outputs]),
        "endTime": made,
        "actionStatus": {"@id": "http://schema.org/CompletedActionStatus"},
        **({"participant": _links(clients)} if clients else {}),
    }
    head = _head(result, made, parts)
    return [*head, run, *software, *base, *inputs, *outputs, *clients, *parts]


def _head(result: Result, made: str, parts: Sequence[Entity]) -> list[Entity]:
    """The crate itself: its descriptor, its root and what these refer to."""
    name = f"{result.plan.name}: {base_name(result)}, {result.method}"
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": name,
        "description": "The result of a federated run; README.md says how to load it.",
        "datePublished": made,
        "license": {"@id": "#license"},
        "conformsTo": {"@id": PROFILE},
        "hasPart": _links(parts),
        "mentions": [{"@id": "#run"}],
    }
    descriptor = {
        "@id": CRATE,
        "@type": "CreativeWork",
        "conformsTo": {"@id": VERSION},
        "about": {"@id": "./"},
    }
    profile = {
        "@id": PROFILE,
        "@type": "CreativeWork",
        "name": "Process Run Crate",
        "version": "0.5",
    }
    terms = {
        "@id": "#license",
        "@type": "CreativeWork",
        "name": "no licence is stated",
        "description": "Those who made this folder decide, within the licence of the base model.",
    }
    return [descriptor, root, profile, terms]


def _told(result: Result, rounds: Sequence[Mapping[str, Any]]) -> str:
    plan, done = result.plan, result.checkpoint.state.round
    if result.folder.contributions.is_dir():
        return f"The plan {plan.name} was carried out by files that clients made, merged at once."
    note = f" The model is that of client {_own(result, rounds)}." if result.client else ""
    return (
        f"The plan {plan.name} was carried out for {done} of "
        f"{say_count(plan.rounds, 'rounds')}. The examples "
        f"stayed with the clients.{note}"
    )


def _own(result: Result, rounds: Sequence[Mapping[str, Any]]) -> int | str:
    """The number of the client whose own model was exported."""
    return _numbers(rounds).get(result.client, "unknown")


def _time(result: Result) -> str:
    """When the exported state was written, to the second."""
    fixed = os.environ.get(EPOCH, "")
    kept = result.source.stat().st_mtime
    return datetime.fromtimestamp(int(fixed) if fixed.isdigit() else int(kept), UTC).isoformat()


def _software(result: Result) -> Iterator[Entity]:
    """What ran the plan, then what that needed."""
    versions = dict(result.checkpoint.environment.get("versions", {}))
    own = str(versions.pop("fedpeft", "unknown"))
    libraries = [_application(name, str(versions[name])) for name in sorted(versions)]
    about = f"It exported this folder as version {__version__}."
    yield {
        **_application("fedpeft", own),
        "description": about,
        "softwareRequirements": _links(libraries),
    }
    yield from libraries


def _application(name: str, version: str) -> Entity:
    return {
        "@id": f"#software-{name}",
        "@type": "SoftwareApplication",
        "name": name,
        "softwareVersion": version,
    }


def _base(result: Result) -> list[Entity]:
    """The base model, then its files as they lay at the export."""
    name, used = base_name(result), bool(result.plan.method.pretrained)
    found = list_base_files(str(getattr(result.plan.task, "model", "")), used)
    files = [
        {
            "@id": f"#base/{quote(one.path)}",
            "@type": "CreativeWork",
            "name": one.path,
            "size": str(one.size),
            "sha256": one.sha256,
        }
        for one in found.files
    ]
    told = "" if used else " Its weights were not used."
    missing = "" if files else " Its files were not found at the export."
    model: Entity = {
        "@id": "#base",
        "@type": "CreativeWork",
        "name": name,
        "description": f"The base model.{told}{missing}",
    }
    if found.revision:
        model["version"] = found.revision
    if found.from_hub:
        model["url"] = f"https://huggingface.co/{quote(name)}"
    return [{**model, "hasPart": _links(files)} if files else model, *files]


def _inputs(result: Result) -> Iterator[Entity]:
    plan, division = result.plan, read_json(result.folder.partition) or {}
    told = {
        "plan fingerprint": plan.fingerprint,
        "seed": plan.seed,
        "rounds planned": plan.rounds,
        "clients": division.get("clients"),
        "cohort": plan.cohort,
        "partition fingerprint": division.get("fingerprint"),
    }
    yield from _values("input", told)


def _outputs(result: Result, rounds: Sequence[Mapping[str, Any]]) -> Iterator[Entity]:
    """What the rounds came to, up to the one that is exported."""
    measured = [line for line in rounds if line["held_out"]]
    told: dict[str, Any] = {
        "rounds": result.checkpoint.state.round,
        "bytes up": sum(line["bytes_up"] for line in rounds),
        "bytes down": sum(line["bytes_down"] for line in rounds),
    }
    if measured:
        told["round measured"] = measured[-1]["round"]
        told |= {f"held-out {name}": x for name, x in measured[-1]["held_out"].items()}
    if private := result.checkpoint.privacy:
        bound = private["epsilon"]
        told["epsilon"] = "not bounded" if bound is None else bound
        told |= {key: private.get(key) for key in ("delta", "unit", "accountant")}
    yield from _values("output", told)


def _values(kind: str, told: Mapping[str, Any]) -> Iterator[Entity]:
    for name, value in told.items():
        if value is not None:
            at = f"#{kind}-{quote(name.replace(' ', '-'))}"
            yield {"@id": at, "@type": "PropertyValue", "name": name, "value": value}


def _numbers(rounds: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Numbers of the clients that were asked, from 1, in the order of their names."""
    names = sorted({name for line in rounds for name in line["clients"]})
    return {name: number for number, name in enumerate(names, 1)}


def _participants(rounds: Sequence[Mapping[str, Any]]) -> Iterator[Entity]:
    """Each client by its number, with the rounds in which it was counted and in which not."""
    numbers = _numbers(rounds)
    if len(numbers) > CLIENTS:
        yield _client("all", f"{len(numbers)} clients were asked; they are not told one by one.")
        return
    counted: dict[str, list[int]] = {name: [] for name in numbers}
    missing: dict[str, list[int]] = {name: [] for name in numbers}
    for line in rounds:
        for name, told in line["clients"].items():
            (missing if "failed" in told else counted)[name].append(line["round"])
    for name, number in numbers.items():
        words = f"It was counted in the rounds {number_ranges(counted[name]) or 'none'}"
        lost = number_ranges(missing[name])
        yield _client(str(number), words + (f", and not counted in {lost}." if lost else "."))


def _client(number: str, told: str) -> Entity:
    return {
        "@id": f"#client-{number}",
        "@type": "Organization",
        "name": f"client {number}",
        "description": told,
    }


def _file(one: ListedFile) -> Entity:
    return {
        "@id": quote(one.path),
        "@type": "File",
        "name": one.path,
        "contentSize": str(one.size),
        "encodingFormat": FORMATS.get(Path(one.path).suffix, "application/octet-stream"),
        "sha256": one.sha256,
    }


def _links(entities: Iterable[Entity]) -> list[Entity]:
    return [{"@id": one["@id"]} for one in entities]
