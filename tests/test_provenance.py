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
from exporting import Done
from running import fedpeft

from fedpeft.export.base_files import list_base_files
from fedpeft.export.provenance import CLIENTS, CRATE, PLAN, write_provenance
from fedpeft.plan.reading import read_plan
from fedpeft.results.result import read_result
from fedpeft.runs.folder import read_rounds
from fedpeft.storage.locate import locate


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


def values_of(
    crate: Mapping[str, Mapping[str, Any]], links: list[dict[str, str]]
) -> dict[str, Any]:
    entities = [crate[link["@id"]] for link in links]
    return {one["name"]: one["value"] for one in entities if one["@type"] == "PropertyValue"}


def test_the_crate_by_hand(folders: Mapping[str, Path], runs: Mapping[str, Done]) -> None:
    folder, run = folders["lora"], runs["lora"]
    crate = crate_of(folder)
    [round] = read_rounds(run.folder)
    assert crate[CRATE]["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    root, action = crate["./"], crate["#run"]
    assert root["conformsTo"] == {"@id": "https://w3id.org/ro/wfrun/process/0.5"}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CRATE)
    assert [part["@id"] for part in root["hasPart"]] == [path.name for path in files]
    for path in files:
        told = crate[path.name]
        assert told["@type"] == "File" and told["contentSize"] == str(path.stat().st_size)
        assert told["sha256"] == sha256(path.read_bytes()).hexdigest()
    assert crate[action["instrument"]["@id"]]["name"] == "fedpeft"
    needed = crate["#software-fedpeft"]["softwareRequirements"]
    assert {crate[link["@id"]]["name"] for link in needed} == {
        "python",
        "torch",
        "transformers",
        "peft",
    }
    assert {"@id": PLAN} in action["object"] and {"@id": PLAN} not in action["result"]
    assert read_plan(folder / PLAN).fingerprint == run.site.plan.fingerprint
    inputs = values_of(crate, action["object"])
    assert inputs["plan fingerprint"] == run.site.plan.fingerprint
    assert (inputs["rounds planned"], inputs["clients"], inputs["cohort"]) == (1, 120, 2)
    outputs = values_of(crate, action["result"])
    assert outputs["bytes up"] == round["bytes_up"] and outputs["rounds"] == 1
    assert outputs["held-out accuracy"] == round["held_out"]["accuracy"]
    assert "epsilon" not in outputs


def test_the_base_is_known_by_its_files(folders: Mapping[str, Path]) -> None:
    crate = crate_of(folders["lora"])
    place = locate("micro-vit")
    assert place is not None and crate["#base"]["name"] == "micro-vit"
    told = {crate[link["@id"]]["name"]: crate[link["@id"]] for link in crate["#base"]["hasPart"]}
    assert sorted(told) == ["config.json", "model.safetensors"]
    for name, one in told.items():
        content = (place / name).read_bytes()
        assert (one["sha256"], one["size"]) == (sha256(content).hexdigest(), str(len(content)))


@pytest.mark.slow
def test_weights_that_were_not_used_are_not_listed(folders: Mapping[str, Path]) -> None:
    scratch = crate_of(folders["scratch"])
    assert scratch["#base"]["description"] == "The base model. Its weights were not used."
    assert [link["@id"] for link in scratch["#base"]["hasPart"]] == ["#base/config.json"]


def test_clients_have_numbers_and_no_names_and_nothing_tells_the_machine(
    folders: Mapping[str, Path], runs: Mapping[str, Done]
) -> None:
    folder, run = folders["lora"], runs["lora"]
    [round] = read_rounds(run.folder)
    crate, text = crate_of(folder), (folder / CRATE).read_text(encoding="utf-8")
    asked = sorted(round["clients"])
    assert [link["@id"] for link in crate["#run"]["participant"]] == ["#client-1", "#client-2"]
    assert crate["#client-1"]["description"] == "It was counted in the rounds 1."
    for word in (*asked, socket.gethostname(), str(run.folder.path), str(Path.home()) + "/"):
        assert word not in text


def test_who_was_counted_when_and_who_was_asked_in_vain(
    runs: Mapping[str, Done], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(runs["lora"].folder.path, path)
    [round] = read_rounds(runs["lora"].folder)
    _, other = sorted(round["clients"])
    round["clients"][other] = {"down": 9, "up": 0, "failed": f"{other} is tired"}
    (path / "rounds.jsonl").write_text(json.dumps(round) + "\n")
    result = read_result(path)
    write_provenance(result, path_of(tmp_path / "out"))
    found = crate_of(tmp_path / "out")
    assert found["#client-2"]["description"] == (
        "It was counted in the rounds none, and asked in vain in 1."
    )
    assert other not in json.dumps(found)
    round["clients"] = {f"c{k}": {"down": 9, "up": 9} for k in range(CLIENTS + 1)}
    (path / "rounds.jsonl").write_text(json.dumps(round) + "\n")
    write_provenance(result, tmp_path / "out")
    found = crate_of(tmp_path / "out")
    assert found["#run"]["participant"] == [{"@id": "#client-all"}]
    assert found["#client-all"]["description"].startswith("1001 clients were asked")


def path_of(path: Path) -> Path:
    path.mkdir()
    return path


def test_epsilon_is_told(runs: Mapping[str, Done], tmp_path: Path) -> None:
    result = read_result(runs["lora"].folder.path)
    for value, told in ((1.5, 1.5), (None, "not bounded")):
        private = {"epsilon": value, "delta": 1e-5, "unit": "client", "accountant": "rdp"}
        checkpoint = replace(result.checkpoint, privacy=private)
        out = tmp_path / str(told)
        write_provenance(replace(result, checkpoint=checkpoint), path_of(out))
        crate = crate_of(out)
        outputs = values_of(crate, crate["#run"]["result"])
        assert (outputs["epsilon"], outputs["delta"], outputs["unit"]) == (told, 1e-5, "client")


def test_equal_folders_have_equal_bytes(
    folders: Mapping[str, Path],
    runs: Mapping[str, Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, made = read_result(runs["lora"].folder.path), []
    for place in ("one", "two"):
        shutil.copytree(folders["lora"], tmp_path / place)
        write_provenance(result, tmp_path / place)
        made.append((tmp_path / place / CRATE).read_bytes())
    assert made[0] == made[1] == (folders["lora"] / CRATE).read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    write_provenance(result, tmp_path / "two")
    fixed = crate_of(tmp_path / "two")
    assert fixed["./"]["datePublished"] == "1970-01-01T00:00:00+00:00"
    assert fixed["#run"]["endTime"] == "1970-01-01T00:00:00+00:00"
    kept = result.folder.checkpoint.stat().st_mtime
    ended = datetime.fromisoformat(crate_of(tmp_path / "one")["#run"]["endTime"])
    assert 0 <= kept - ended.timestamp() < 1


@pytest.mark.slow
def test_equal_exports_have_equal_bytes(
    runs: Mapping[str, Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, made = runs["bias"].folder, []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        assert fedpeft("export", run.path, "out").exit_code == 0
        made.append((tmp_path / place / "out" / CRATE).read_bytes())
    assert made[0] == made[1]


def test_an_export_is_taken_for_no_run(folders: Mapping[str, Path]) -> None:
    result = fedpeft("watch", folders["lora"], "--once")
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


def test_a_library_reads_it(folders: Mapping[str, Path]) -> None:
    library = pytest.importorskip("rocrate.rocrate")
    crate = library.ROCrate(folders["lora"])
    action = crate.get("#run")
    assert action["instrument"]["name"] == "fedpeft"
    names = {part.id for part in crate.root_dataset["hasPart"]}
    assert {"README.md", PLAN, "adapter_model.safetensors"} <= names


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
