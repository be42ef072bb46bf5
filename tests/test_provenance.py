"""Where an exported folder comes from: the crate by hand, and by libraries where they are there."""

import json
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import Done
from running import fedpeft

from fedpeft.core.types import State
from fedpeft.export.base_files import list_base_files
from fedpeft.export.provenance import CLIENTS, CRATE, PLAN, write_provenance
from fedpeft.plan.reading import read_plan
from fedpeft.results.result import read_result
from fedpeft.runs.checkpoint import save_checkpoint
from fedpeft.runs.folder import RunFolder, create
from fedpeft.storage.locate import locate

SPEC: dict[str, Any] = {
    "name": "hand",
    "task": "image-classification",
    "data": "digits",
    "method": "lora",
    "rounds": 4,
    "cohort": 2,
    "seed": 7,
    "partition": {"name": "iid", "clients": 5},
}
ANSWER = {"down": 10, "up": 100, "weight": 1.0}


def crate_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The crate's entities by their names; each has one, and each that is referred to is there."""
    text = (folder / CRATE).read_text(encoding="utf-8")
    entities: list[dict[str, Any]] = json.loads(text)["@graph"]
    found = {one["@id"]: one for one in entities}
    assert len(found) == len(entities)
    for one in entities:
        for key, value in one.items():
            for link in value if isinstance(value, list) else [value]:
                if isinstance(link, dict) and not link["@id"].startswith("http"):
                    assert link["@id"] in found, (one["@id"], key)
    return found


def test_what_was_asked_of_an_export_is_told(tmp_path: Path) -> None:
    run = kept_run(tmp_path / "run")
    asked = {"merge": True, "lora-rank": 8}
    write_provenance(read_result(run), _empty(tmp_path / "asked"), asked)
    write_provenance(read_result(run), _empty(tmp_path / "plain"))
    told = [
        values_of(crate, crate["#run"]["object"])
        for crate in (crate_of(tmp_path / "asked"), crate_of(tmp_path / "plain"))
    ]
    assert told[0] == {**told[1], **asked}


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def values_of(
    crate: Mapping[str, Mapping[str, Any]], links: list[dict[str, str]]
) -> dict[str, Any]:
    entities = [crate[link["@id"]] for link in links]
    return {one["name"]: one["value"] for one in entities if one["@type"] == "PropertyValue"}


def kept_run(folder: Path, **changes: Any) -> Path:
    """A run of three rounds as its folder keeps it, written by hand; nothing is trained."""
    plan = read_plan({**SPEC, **changes})
    kept = create(plan, folder)
    lines = []
    for at in (1, 2, 3):
        beta = {"down": 10, "up": 0, "failed": "clinic-beta is tired"} if at == 2 else ANSWER
        clients = {"clinic-beta": beta, "clinic-alpha": ANSWER}
        told = {"round": at, "clients": clients, "bytes_up": 100 * at, "bytes_down": 20}
        lines.append(json.dumps({**told, "held_out": {"accuracy": at / 10} if at < 3 else None}))
    kept.rounds.write_text("\n".join(lines) + "\n")
    kept.partition.write_text(json.dumps({"clients": 5, "classes": ["x"], "fingerprint": "f1"}))
    here = {"versions": {"python": "3.11.7", "fedpeft": "0.0.9", "torch": "2.8.0"}}
    state = State(3, {"classifier.bias": torch.zeros(1)})
    save_checkpoint(kept.checkpoint, plan, state, here)
    return folder


def exported(run: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The crate of a folder with two files, exported from a run."""
    (folder / "deep er").mkdir(parents=True)
    (folder / "README.md").write_text("how to load it")
    (folder / "deep er" / "x.safetensors").write_bytes(b"123")
    write_provenance(read_result(run), folder)
    return crate_of(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept_run(tmp_path_factory.mktemp("kept") / "run")


def test_the_crate_by_hand(run: Path, tmp_path: Path) -> None:
    crate, plan = exported(run, tmp_path), read_plan(run / "plan.toml")
    assert crate[CRATE]["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    root, action = crate["./"], crate["#run"]
    assert root["conformsTo"] == {"@id": "https://w3id.org/ro/wfrun/process/0.5"}
    assert root["name"] == "hand: micro-vit, lora"
    paths = ["README.md", "deep%20er/x.safetensors", PLAN]
    assert [part["@id"] for part in root["hasPart"]] == paths
    assert crate["deep%20er/x.safetensors"] == {
        "@id": "deep%20er/x.safetensors",
        "@type": "File",
        "name": "deep er/x.safetensors",
        "contentSize": "3",
        "encodingFormat": "application/octet-stream",
        "sha256": sha256(b"123").hexdigest(),
    }
    assert crate[action["instrument"]["@id"]]["softwareVersion"] == "0.0.9"
    needed = crate["#software-fedpeft"]["softwareRequirements"]
    told = {crate[link["@id"]]["name"]: crate[link["@id"]]["softwareVersion"] for link in needed}
    assert told == {"python": "3.11.7", "torch": "2.8.0"}
    assert {"@id": PLAN} in action["object"] and {"@id": PLAN} not in action["result"]
    assert read_plan(tmp_path / PLAN).fingerprint == plan.fingerprint
    assert values_of(crate, action["object"]) == {
        "plan fingerprint": plan.fingerprint,
        "seed": 7,
        "rounds planned": 4,
        "clients": 5,
        "cohort": 2,
        "partition fingerprint": "f1",
    }
    assert values_of(crate, action["result"]) == {
        "rounds": 3,
        "bytes up": 600,
        "bytes down": 60,
        "round measured": 2,
        "held-out accuracy": 0.2,
    }
    assert action["description"].startswith("The plan hand was carried out for 3 of 4 rounds.")


def test_the_base_is_known_by_its_files(run: Path, tmp_path: Path) -> None:
    crate = exported(run, tmp_path)
    place = locate("micro-vit")
    assert place is not None and crate["#base"]["name"] == "micro-vit"
    told = {crate[link["@id"]]["name"]: crate[link["@id"]] for link in crate["#base"]["hasPart"]}
    assert sorted(told) == ["config.json", "model.safetensors"]
    for name, one in told.items():
        content = (place / name).read_bytes()
        assert (one["sha256"], one["size"]) == (sha256(content).hexdigest(), str(len(content)))


def test_weights_that_were_not_used_are_not_listed(tmp_path: Path) -> None:
    crate = exported(kept_run(tmp_path / "run", method="scratch"), tmp_path / "out")
    assert crate["#base"]["description"] == "The base model. Its weights were not used."
    assert [link["@id"] for link in crate["#base"]["hasPart"]] == ["#base/config.json"]


def test_a_base_of_another_folder_has_its_name_alone(tmp_path: Path) -> None:
    place = locate("micro-vit")
    assert place is not None
    shutil.copytree(place, tmp_path / "secret-project" / "base")
    model = str(tmp_path / "secret-project" / "base")
    task = {"name": "image-classification", "model": model}
    crate = exported(kept_run(tmp_path / "run", task=task), tmp_path / "out")
    assert crate["#base"]["name"] == "base" and len(crate["#base"]["hasPart"]) == 2
    assert "secret-project" not in (tmp_path / "out" / CRATE).read_text()


def test_clients_have_numbers_and_no_names_and_nothing_tells_the_machine(
    run: Path, tmp_path: Path
) -> None:
    crate = exported(run, tmp_path)
    assert crate["#run"]["participant"] == [{"@id": "#client-1"}, {"@id": "#client-2"}]
    told = [crate[f"#client-{number}"]["description"] for number in (1, 2)]
    assert told == [
        "It was counted in the rounds 1-3.",
        "It was counted in the rounds 1, 3, and not counted in 2.",
    ]
    text = (tmp_path / CRATE).read_text(encoding="utf-8")
    # A host or a home of a few letters may be part of any word.
    names = [name for name in (socket.gethostname(), f"{Path.home()}/") if len(name) > 5]
    for word in ("clinic", "tired", str(run), *names):
        assert word not in text


def test_many_clients_are_counted_and_not_listed(tmp_path: Path) -> None:
    path = kept_run(tmp_path / "run")
    clients = {f"c{k}": ANSWER for k in range(CLIENTS + 1)}
    line = {"round": 1, "clients": clients, "bytes_up": 1, "bytes_down": 1, "held_out": None}
    (path / "rounds.jsonl").write_text(json.dumps(line) + "\n")
    crate = exported(path, tmp_path / "out")
    assert crate["#run"]["participant"] == [{"@id": "#client-all"}]
    assert crate["#client-all"]["description"].startswith("1001 clients were asked")


def test_epsilon_is_told(run: Path, tmp_path: Path) -> None:
    result = read_result(run)
    for value, told in ((1.5, 1.5), (None, "not bounded")):
        private = {"epsilon": value, "delta": 1e-5, "unit": "client", "accountant": "rdp"}
        checkpoint = replace(result.checkpoint, privacy=private)
        out = tmp_path / str(told)
        out.mkdir()
        write_provenance(replace(result, checkpoint=checkpoint), out)
        crate = crate_of(out)
        outputs = values_of(crate, crate["#run"]["result"])
        assert (outputs["epsilon"], outputs["delta"], outputs["unit"]) == (told, 1e-5, "client")


def test_equal_folders_have_equal_bytes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crate = exported(run, tmp_path / "one")
    exported(run, tmp_path / "two")
    write_provenance(read_result(run), tmp_path / "two")  # what lies there already changes nothing
    assert (tmp_path / "one" / CRATE).read_bytes() == (tmp_path / "two" / CRATE).read_bytes()
    kept = RunFolder(run).checkpoint.stat().st_mtime
    ended = datetime.fromisoformat(crate["#run"]["endTime"])
    assert 0 <= kept - ended.timestamp() < 1
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    fixed = exported(run, tmp_path / "fixed")
    assert fixed["./"]["datePublished"] == "1970-01-01T00:00:00+00:00"
    assert fixed["#run"]["endTime"] == "1970-01-01T00:00:00+00:00"


@pytest.mark.slow
def test_equal_exports_have_equal_bytes(
    runs: Mapping[str, Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, made = runs["bias"].folder, []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        assert fedpeft("export", kept.path, "out").exit_code == 0
        made.append((tmp_path / place / "out" / CRATE).read_bytes())
    assert made[0] == made[1]
    crate = crate_of(tmp_path / "one" / "out")
    for path in (tmp_path / "one" / "out").iterdir():
        digest = sha256(path.read_bytes()).hexdigest()
        assert path.name == CRATE or crate[path.name]["sha256"] == digest


def test_an_export_is_taken_for_no_run(run: Path, tmp_path: Path) -> None:
    exported(run, tmp_path)
    result = fedpeft("watch", tmp_path, "--once")
    assert result.exit_code == 2 and "there is no run" in result.stderr


def test_files_of_the_hubs_cache_are_known_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file of the cache is a link to a blob whose name is its SHA-256."""
    constants = pytest.importorskip("huggingface_hub.constants")
    root = tmp_path / "models--some--model"
    snapshot, blobs = root / "snapshots" / ("a" * 40), root / "blobs"
    for folder in (snapshot, blobs, root / "refs"):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text("a" * 40)
    (blobs / ("b" * 64)).write_bytes(b"weights that nobody reads")
    (blobs / ("c" * 40)).write_bytes(b"{}")
    os.symlink(blobs / ("b" * 64), snapshot / "model.safetensors")
    os.symlink(blobs / ("c" * 40), snapshot / "config.json")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = list_base_files("some/model")
    assert (found.revision, found.from_hub) == ("a" * 40, True)
    assert {one.path: one.sha256 for one in found.files} == {
        "config.json": sha256(b"{}").hexdigest(),
        "model.safetensors": "b" * 64,
    }
    assert [one.path for one in list_base_files("some/model", weights=False).files] == [
        "config.json"
    ]
    unknown = list_base_files("nobody/nothing")
    assert (unknown.revision, unknown.from_hub, list(unknown.files)) == ("", True, [])
    assert list_base_files("linear").from_hub is False


def test_a_library_reads_it(run: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("rocrate.rocrate")
    exported(run, tmp_path)
    crate = library.ROCrate(tmp_path)
    action = crate.get("#run")
    assert action["instrument"]["name"] == "fedpeft"
    names = {part.id for part in crate.root_dataset["hasPart"]}
    assert names == {"README.md", PLAN, "deep%20er/x.safetensors"}


@pytest.mark.filterwarnings("ignore")  # of what the validator imports
@pytest.mark.slow  # five seconds for each crate
@pytest.mark.parametrize("name", ["lora", "adapter", "scratch"])
def test_a_validator_finds_nothing_wrong(
    folders: Mapping[str, Path], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The profile's required checks, with the JSON-LD context that `rocrate` brings: the validator
    would fetch it."""
    pytest.importorskip("rocrate_validator")
    rocrate = pytest.importorskip("rocrate")
    from requests import Response
    from rocrate_validator import services
    from rocrate_validator.models import Severity
    from rocrate_validator.utils.http import HttpRequester

    context = Response()
    context.status_code = 200
    context.headers["Content-Type"] = "application/ld+json"
    context._content = (Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld").read_bytes()
    monkeypatch.setattr(HttpRequester, "get", lambda self, url, **how: context, raising=False)

    def checked(folder: Path) -> list[str]:
        settings = services.ValidationSettings(
            rocrate_uri=str(folder),
            profile_identifier="process-run-crate",
            requirement_severity=Severity.REQUIRED,
        )
        return [str(issue.message) for issue in services.validate(settings).get_issues()]

    assert checked(folders[name]) == []
    if name != "lora":
        return
    broken = tmp_path / "broken"
    shutil.copytree(folders[name], broken)
    values = json.loads((broken / CRATE).read_text())
    for one in values["@graph"]:
        one.pop("instrument", None)
    (broken / CRATE).write_text(json.dumps(values))
    assert any("instrument" in message for message in checked(broken))
