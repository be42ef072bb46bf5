"""What a plan reads from short forms, from settings beside a file, and what it refuses since parts
do not fit."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedpeft.codecs.int8 import Int8
from fedpeft.codecs.topk import TopK
from fedpeft.core.types import Tensors
from fedpeft.data.arrays import Arrays
from fedpeft.data.digits import Digits
from fedpeft.data.images import Images
from fedpeft.data.table import HubTable
from fedpeft.errors import PlanError
from fedpeft.methods.bias import Bias
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.registry import build
from fedpeft.server_steps.average import Average
from fedpeft.stages.error_feedback import ErrorFeedback

CIFAR = Path(__file__).parent.parent / "plans" / "cifar100-vit-tiny.toml"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to which relative paths refer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDPEFT_DATA", raising=False)
    return tmp_path


def pictures(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)


@pytest.mark.parametrize(
    "plan", ["", 'data = "digits"', '[data]\nname = "table"\npath = "x/y"\nsubset = 7', CIFAR]
)
def test_data_beside_the_plan_is_as_in_it(plan: str | Path) -> None:
    assert read_plan(plan, ["data=uoft-cs/cifar100"]).data == HubTable("uoft-cs/cifar100")
    assert read_plan('data = "uoft-cs/cifar100"').data == HubTable("uoft-cs/cifar100")
    assert read_plan(plan, ["data=digits"]).data == Digits()


def test_settings_go_on_from_short_forms() -> None:
    plan = read_plan(
        CIFAR,
        [
            "data=uoft-cs/cifar100",
            "data.subset=9",
            "task.model=google/vit",
            "local.optimizer=adamw",
        ],
    )
    assert plan.data == HubTable("uoft-cs/cifar100", subset=9)
    assert (plan.task.model, plan.task.size) == ("google/vit", 64)  # type: ignore[attr-defined]
    assert read_plan('data = "some/table"', ["data.label=kind"]).data == HubTable(
        "some/table", label="kind"
    )
    assert plan.local.optimizer == build("optimizer", "adamw")  # type: ignore[attr-defined]
    assert read_plan('method = "lora"', ["method.rank=3"]).method == build(
        "method", {"name": "lora", "rank": 3}
    )
    assert read_plan(plan.toml()) == plan


def test_npz_is_arrays(place: Path) -> None:
    x, y = np.arange(40.0).reshape(10, 4), np.arange(10) % 2
    np.savez(place / "points.npz", x_train=x, y_train=y)
    plan = read_plan('data = "points.npz"')
    assert plan.data == Arrays("points.npz") and plan.data.load().train.columns["x"].shape == (8, 4)
    assert read_plan("", ["data=no/such.NPZ"]).data == Arrays("no/such.NPZ")


@pytest.mark.parametrize("train", ["train/", ""])
def test_a_folder_of_pictures_is_images(place: Path, train: str) -> None:
    pictures(
        place / "pets", *(f"{train}{kind}/{k}.PNG" for kind in ("cat", "dog") for k in range(5))
    )
    (place / "pets" / "dataset_infos.json").write_text("{}")
    (place / "pets" / "README.md").write_text("Pets")
    plan = read_plan({"data": "pets"})
    assert plan.data == Images("pets")
    examples = plan.data.load()
    assert examples.classes == ("cat", "dog") and len(examples.train) == 8


@pytest.mark.parametrize("table", ["rows.csv", "train/rows.jsonl.gz", "a/b/rows.parquet"])
def test_a_folder_with_a_table_is_a_table(place: Path, table: str) -> None:
    pictures(place / "pets", "train/cat/0.png")
    (place / "pets" / table).parent.mkdir(parents=True, exist_ok=True)
    (place / "pets" / table).write_bytes(b"")
    assert read_plan({"data": "pets"}).data == HubTable("pets")


def test_other_places_are_tables(place: Path) -> None:
    (place / "empty").mkdir()
    (place / "rows.csv").write_text("text,label\n")
    pictures(place, "flat/0.png")
    for name in ("empty", "rows.csv", "flat", "no/such/place"):
        assert read_plan({"data": name}).data == HubTable(name)


def test_a_name_goes_before_a_place(place: Path) -> None:
    pictures(place, "digits/cat/0.png")
    assert read_plan({"data": "digits"}).data == Digits()
    assert read_plan({"data": "./digits"}).data == Images("./digits")
    with pytest.raises(
        PlanError, match=r"no data called 'digit'\. Did you mean 'digits'\?.* no file or folder"
    ):
        read_plan({"data": "digit"})


@pytest.mark.parametrize(
    "stages", ["error_feedback", {"name": "error_feedback"}, ["error_feedback"], [ErrorFeedback()]]
)
def test_one_stage_is_a_list_of_one(stages: Any) -> None:
    assert read_plan({"stages": stages, "uplink": "topk"}).stages == (ErrorFeedback(TopK()),)


def test_built_parts_pass() -> None:
    stage = ErrorFeedback(TopK(0.3))
    plan = read_plan({"stages": stage, "uplink": TopK(0.3), "data": Digits()}, ["rounds=2"])
    assert plan.stages == (stage,) and plan.data == Digits() and plan.rounds == 2
    with pytest.raises(
        PlanError,
        match=r"'uplink\.density=1': uplink is TopK\(.*\), which has no keys; set uplink itself",
    ):
        read_plan({"uplink": TopK()}, ["uplink.density=1"])


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            {"server": 1},
            r"plan\.server = 1: must be a name, a table with a `name`.*; known: adagrad, .*yogi",
        ),
        ({"server": ["adam"]}, r"plan\.server = \['adam'\]: must be a name"),
        (
            {"stages": 5},
            r"plan\.stages = 5: must be a name.*; known: client_dp, ef21, error_feedback",
        ),
        ({"stages": True}, r"plan\.stages = True: must be a name"),
        (
            {"stages": ["error_feedback", 3], "uplink": "topk"},
            r"plan\.stages\[1\] = 3: must be a name",
        ),
        ({"stages": ["parts:die"]}, r"plan\.stages\[0\]: 'parts:die' is no dataclass"),
        (
            {"stages": {"codec": "topk"}},
            r"plan\.stages needs a `name`; known: client_dp, ef21, error_feedback",
        ),
        ({"stages": ["error_feedback"], "uplink": 5}, r"plan\.uplink = 5: must be a name"),
        ({"method": 3}, r"plan\.method = 3: must be a name"),
        ({"data": 3}, r"plan\.data = 3: must be a name"),
        ({"task": 3}, r"plan\.task = 3: must be a name"),
        (
            {"task": 3, "model": "x"},
            r"model = 'x' belongs to the task, but plan\.task = 3 is neither a name nor a table",
        ),
        ({"model": 3}, r"plan\.task\.model = 3: input should be a valid string"),
        (
            {"local": {"lr": {"x": 3}}},
            r"plan\.local\.lr = \{'x': 3\}: input should be a valid number",
        ),
        (
            {"local": {"optimizer": 0}},
            r"plan\.local\.optimizer = 0: must be a name.*adamw, adopt, sgd",
        ),
        (
            {"server": "parts:Points"},
            r"plan\.server: Points is no server: it has no init, step",
        ),
        ({3: 4}, "no key called '3'"),
    ],
)
def test_a_bad_plan_is_one_line(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError, match=reason) as caught:
        read_plan(spec)
    assert "\n" not in str(caught.value)


def test_a_stage_in_a_full_plan_follows_the_uplink() -> None:
    full = read_plan(
        {"uplink": {"name": "topk", "density": 0.2}, "stages": ["error_feedback"]}
    ).toml()
    for overrides, codec in (
        ([], TopK(0.2)),
        (["uplink=int8"], Int8()),
        (["uplink.density=0.5"], TopK(0.5)),
    ):
        plan = read_plan(full, overrides)
        assert plan.uplink == codec and plan.stages == (ErrorFeedback(codec),)


def test_a_stage_that_is_written_as_the_uplink_follows_it() -> None:
    spec = {"stages": [{"name": "error_feedback", "codec": "topk"}], "uplink": "topk"}
    assert read_plan(spec, ["uplink.density=0.5"]).stages == (ErrorFeedback(TopK(0.5)),)


@pytest.mark.parametrize("overrides", [[], ["uplink=int8"], ["uplink.density=0.5"]])
def test_a_stage_with_a_codec_of_its_own_is_refused(overrides: list[str]) -> None:
    own = {"name": "error_feedback", "codec": {"name": "topk", "density": 0.25}}
    with pytest.raises(
        PlanError,
        match=r"stages\[0\]\.codec = TopK\(density=0\.25.*\) is not the uplink's (TopK|Int8)\(",
    ):
        read_plan({"stages": [own], "uplink": "topk"}, overrides)


def test_a_codec_that_is_set_beside_another_uplink_is_refused() -> None:
    overrides = ['stages=[{name = "error_feedback", codec = "topk"}]', "uplink=int8"]
    with pytest.raises(PlanError, match=r"TopK\(density=0\.1.*\) is not the uplink's Int8\("):
        read_plan({"uplink": "topk"}, overrides)


def test_the_codecs_are_compared_in_python_too() -> None:
    plan = Plan(uplink=TopK(0.2), stages=(ErrorFeedback(TopK(0.2)),))
    with pytest.raises(PlanError, match="keeps for the next round must be what the uplink drops"):
        replace(plan, uplink=TopK(0.3))
    with pytest.raises(PlanError, match=r"stages\[0\]\.codec"):
        Plan(stages=(ErrorFeedback(),))


def test_a_downlink_keeps_every_parameter() -> None:
    with pytest.raises(
        PlanError, match=r"downlink = TopK\(density=0\.5.*receive most of them as zero"
    ):
        Plan(method=Bias(), downlink=TopK(0.5))
    assert Plan(downlink=TopK(1.0)).downlink == TopK(1.0)
    assert Plan(downlink=Int8(), uplink=TopK(0.5)).downlink == Int8()


@dataclass(frozen=True)
class Signs:
    """An optimizer of one's own whose steps are no sums of gradients."""

    def init(self, params: Tensors) -> Tensors:
        return {}

    def step(
        self, params: Tensors, memory: Tensors, gradient: Tensors, lr: Any
    ) -> tuple[Tensors, Tensors]:
        return {name: x - lr * gradient[name].sign() for name, x in params.items()}, memory


@pytest.mark.parametrize("optimizer", ["adamw", Signs()])
def test_scaffold_goes_with_sgd_only(optimizer: Any) -> None:
    local = {"correction": "scaffold", "optimizer": optimizer}
    with pytest.raises(
        PlanError,
        match=r'those of another optimizer are no sums of gradients: set local\.optimizer to "sgd"',
    ):
        read_plan({"local": local})
    assert read_plan({"local": {**local, "correction": "prox"}}).local_shares == ()
    plain = {**local, "optimizer": {"name": "sgd", "momentum": 0.0, "nesterov": False}}
    assert read_plan({"local": plain}).local_shares == ("c",)


def test_scaffold_of_a_plan_of_version_1_is_one_part() -> None:
    local = {"correction": "scaffold"}
    plan = read_plan({"local": local, "server": {"name": "scaffold", "inner": "momentum"}})
    assert plan.fingerprint == read_plan({"local": local, "server": "momentum"}).fingerprint
    assert read_plan({"local": local, "server": "scaffold"}).server == Average()
    with pytest.raises(PlanError, match=r'set local\.correction = "scaffold" and leave `server`'):
        read_plan({"server": "scaffold"})


@pytest.mark.parametrize(
    ("key", "places"),
    [
        ("lr", "local.lr or server.lr"),
        ("epochs", "local.epochs"),
        ("momentum", "local.optimizer.momentum"),
        ("clients", "partition.clients"),
    ],
)
def test_a_key_of_a_part_is_said_to_be_one(key: str, places: str) -> None:
    spec = {"local": {"lr": 0.1, "optimizer": "sgd"}, "partition": "iid", key: 1}
    with pytest.raises(PlanError, match=rf"no key called '{key}' here: .* set {places}$"):
        read_plan(spec)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**63}, "below 2"),
        ({"cohort": 3, "admission": {"min_replies": 4}}, "min_replies = 4 is more than the cohort"),
    ],
)
def test_what_no_round_could_use_is_refused(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        read_plan(spec)
