"""An owner's own data: all of them are trained on, read as the owner says, and that is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contributions import own_data as points
from PIL import Image
from running import fedpeft

from fedpeft.data.arrays import Arrays
from fedpeft.data.images import Images
from fedpeft.data.masks import PicturesWithMasks
from fedpeft.data.series import Series
from fedpeft.data.short_forms import source
from fedpeft.data.table import HubTable
from fedpeft.data.videos import Videos
from fedpeft.errors import DataError, PlanError
from fedpeft.evaluation.client_accuracy import client_accuracy
from fedpeft.evaluation.measure import held_out
from fedpeft.oneshot.own_data import OwnData, own_data, split_settings
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import start
from fedpeft.rounds.site import open_site
from fedpeft.storage.client_memory import Nowhere

PLAN = """
name = "own"
rounds = 1
classes = ["c", "b", "a"]
method = {name = "full"}
task.name = "module"
task.module = "torch.nn:Linear"
task.arguments = {in_features = 2, out_features = 3}
data = {name = "arrays", path = "server.npz"}
local = {epochs = 2, lr = 0.1, batch_size = 8}
"""


def write(path: Path, labels: str, **others: Any) -> Path:
    x = np.arange(2 * len(labels), dtype=np.float32).reshape(-1, 2)
    np.savez(path, x_train=x, y_train=np.array(list(labels)), **others)
    return path


def test_of_an_owners_examples_none_is_held_out(tmp_path: Path) -> None:
    path = str(write(tmp_path / "x.npz", "abc"))  # one of each, of which no share can be taken
    own = Arrays("server.npz", test_fraction=0.4)
    with pytest.raises(DataError, match="or set it to 0 to hold out none"):
        Arrays(path).load()
    got = OwnData(path).source(own).load()
    assert (len(got.train), len(got.test)) == (3, 0)
    again = OwnData(path, ("data.test_fraction=0.4",)).source(own)
    assert again.test_fraction == 0.4


def test_a_test_split_is_not_trained_on(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", "ab", x_test=np.zeros((1, 2)), y_test=np.array(["a"]))
    got = OwnData(str(path)).source(Arrays("server.npz")).load()
    assert (len(got.train), len(got.test)) == (2, 1)


def test_an_owner_reads_its_data_in_its_own_way(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    own = own_data(str(tmp_path), ["data.window=[0, 4095]", " data.skip_unreadable=true"])
    source = own.source(Arrays("server.npz"))
    assert isinstance(source, Images)
    assert source.window == (0, 4095) and source.skip_unreadable and source.test_fraction == 0
    assert own.told == [
        "its data are read with data.window=[0, 4095]",
        "its data are read with data.skip_unreadable=true",
    ]


@pytest.mark.parametrize("pair", ["local.lr=1", "data.path=x", "data.name=table", "data=x"])
def test_an_owner_changes_nothing_but_how_its_data_are_read(pair: str) -> None:
    with pytest.raises(PlanError, match="how its own data are read"):
        own_data("x", [pair])


def test_a_key_that_the_source_does_not_have_is_refused(tmp_path: Path) -> None:
    own = own_data(str(write(tmp_path / "x.npz", "ab")), ["data.windwo=1"])
    with pytest.raises(PlanError, match="windwo"):
        own.source(Arrays("server.npz"))


def test_settings_of_the_plan_and_of_the_data_are_told_apart() -> None:
    assert split_settings(["data.a=1", "rounds=2"]) == (["data.a=1"], ["rounds=2"])


def test_the_server_is_told_how_an_owners_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    study = tmp_path / "study"
    assert fedpeft("invite", tmp_path / "plan.toml", "-o", study).exit_code == 0
    for name, more in (("a", ["--set", "data.x_train=other"]), ("b", [])):
        data, out = points(tmp_path / f"{name}.npz", "abc"), tmp_path / f"{name}.s"
        if more:
            held = dict(np.load(data))
            np.savez(data, other=held["x_train"], y_train=held["y_train"])
        ended = fedpeft("contribute", study, "--data", data, "--name", name, "-y", "-o", out, *more)
        assert ended.exit_code == 0 and "60 examples" in ended.output, ended.output
        assert ("the server is told" in ended.output) == bool(more)
    files = [tmp_path / f"{name}.s" for name in "ab"]
    assert fedpeft("merge", study, *files, "-o", tmp_path / "m").exit_code == 0
    told = json.loads((tmp_path / "m" / "partition.json").read_text())["reads"]
    assert told == {"a": ["its data are read with data.x_train=other"]}
    monkeypatch.setenv("FEDPEFT_DATA", str(points(tmp_path / "server.npz", "ab").parent))
    measured = json.loads(fedpeft("evaluate", tmp_path / "m", "--json").stdout)
    assert measured["held_out"]["accuracy"] > 0.9
    ended = fedpeft("contribute", study, "--client", 0, "--set", "data.x=1", "-o", tmp_path / "c")
    assert ended.exit_code == 2 and "--data" in ended.output


def test_a_run_without_held_out_examples_measures_nothing(tmp_path: Path) -> None:
    path = str(write(tmp_path / "x.npz", "aabbcc"))
    plan = read_plan(
        PLAN.replace('"c", "b", "a"', '"a", "b", "c"'),
        [
            f"data.path={path}",
            "data.test_fraction=0",
            "cohort=1",
            "partition.name=iid",
            "partition.clients=2",
        ],
    )
    site = open_site(plan)
    assert sum(map(site.data.size, site.data.clients)) == 6
    state = start(plan, site.params())
    assert held_out(site, state, Nowhere()) == {}
    assert client_accuracy(site, state, Nowhere()) is None
    assert torch.isfinite(state.params["weight"]).all()


def test_a_source_without_a_short_form_reads_what_its_owners_have(tmp_path: Path) -> None:
    """A table of series is a table by its name, and a folder of videos by its lack of pictures."""
    series = Series("the-servers.csv", context=4, horizon=2)
    (tmp_path / "mine.csv").write_text("time,load\n")
    assert OwnData(str(tmp_path / "mine.csv")).source(series) == replace(
        series, path=str(tmp_path / "mine.csv"), test_fraction=0.0
    )
    clips = tmp_path / "clips"
    (clips / "falls").mkdir(parents=True)
    (clips / "falls" / "1.mp4").touch()
    assert type(OwnData(str(clips)).source(Videos("theirs"))) is Videos
    (clips / "metadata.csv").write_text("file_name,label\n")
    assert type(OwnData(str(clips)).source(Videos("theirs"))) is HubTable


@pytest.mark.parametrize("pictures", [".", "images"])
def test_an_owner_has_masks_beside_its_pictures(pictures: str, tmp_path: Path) -> None:
    for k in range(3):
        for place in (pictures, "masks"):
            (tmp_path / "mine" / place).mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), k).save(tmp_path / "mine" / place / f"{k}.png")
    theirs = PicturesWithMasks("theirs", window="minmax")
    found = OwnData(str(tmp_path / "mine")).source(theirs)
    assert found == replace(theirs, path=str(tmp_path / "mine"), test_fraction=0.0)
    assert len(found.load().train) == 3
    assert source(str(tmp_path / "mine"), [])["name"] == "masks"


def test_a_class_may_be_called_masks(tmp_path: Path) -> None:
    for place in ("masks", "hats"):
        (tmp_path / "worn" / place).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "worn" / place / "1.png")
    assert source(str(tmp_path / "worn"), [])["name"] == "images"
