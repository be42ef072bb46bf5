"""Forecasts: what models tell of windows, how they learn, and what is exported."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_runs import Exported, check_processes, check_stacked

from fedpeft import (
    DataError,
    InProcess,
    PlanError,
    RunError,
    evaluate,
    federate,
    open_site,
    read_plan,
    start,
)
from fedpeft.core.seeds import seed_torch
from fedpeft.core.types import Table
from fedpeft.evaluation.own_held_out import own_held_out
from fedpeft.oneshot.fingerprints import transforms_digest
from fedpeft.runs.execute import open_run_site
from fedpeft.storage.client_memory import Nowhere
from fedpeft.tasks.forecasting import Forecasting, LinearForecaster

SMALL = {"d_model": 8, "num_attention_heads": 2, "ffn_dim": 8, "num_hidden_layers": 1}
PATCHES = {**SMALL, "patch_length": 4, "patch_stride": 4}


def waves(file: Path) -> Path:
    """Three clients: waves of 8 hours in other phases, with noise."""
    draw = np.random.default_rng(1)
    hours = np.arange(90)
    values = [np.sin(2 * np.pi * hours / 8 + k) + 0.1 * draw.normal(size=90) for k in range(3)]
    first = datetime(2014, 1, 1)
    lines = [
        f"{first + timedelta(hours=k)},{','.join(f'{x[k]:.4f}' for x in values)}" for k in range(90)
    ]
    file.write_text("\n".join(["time,a,b,c", *lines]) + "\n")
    return file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return waves(tmp_path_factory.mktemp("series") / "waves.csv")


def run_of(file: Path, model: str = "linear", **other: Any) -> dict[str, Any]:
    shape = {"context": 16, "horizon": 4}
    settings = {"settings": PATCHES} if model == "patchtst" else {}
    return {
        "rounds": 2,
        "cohort": 3,
        "method": "full",
        "task": {"name": "forecast", "model": model, **shape, **settings},
        "data": {"name": "series", "path": str(file), **shape},
        "partition": {"name": "column", "column": "client"},
        "local": {"lr": 0.01, "batch_size": 8, "epochs": 1, "optimizer": "adamw"},
        **other,
    }


def test_errors_by_hand() -> None:
    """Errors (1, −3): squares 1 and 9, absolute values 1 and 3."""
    task = Forecasting(context=1, horizon=2)
    outputs, batch = (
        {"prediction": torch.tensor([[3.0, 0.0]])},
        {"future": torch.tensor([[2.0, 3]])},
    )
    assert task.losses(outputs, batch).tolist() == [5]
    assert {k: x.tolist() for k, x in task.metrics(outputs, batch).items()} == {
        "loss": [5],
        "mae": [2],
    }


def test_the_linear_model_begins_as_the_last_value_and_adds_differences() -> None:
    model = LinearForecaster(3, 2)
    assert model(torch.tensor([[1.0, 2, 5]])).tolist() == [[5, 5]]
    with torch.no_grad():
        model.head.weight[1] = torch.tensor(
            [1.0, 0, 9]
        )  # what weighs the last value counts nothing
    assert model(torch.tensor([[1.0, 2, 5]])).tolist() == [[5, 1]]


def test_a_constant_past_is_forecast_by_patches_whatever_the_weights_are() -> None:
    """PatchTST scales by its window's mean and spread: with a head of zeros it tells the mean."""
    task = Forecasting("patchtst", 16, 4, PATCHES)
    with seed_torch(1):
        model = task.build(()).eval()
    torch.nn.init.zeros_(model.head.projection.weight)  # type: ignore[union-attr, arg-type]
    torch.nn.init.zeros_(model.head.projection.bias)  # type: ignore[union-attr, arg-type]
    batch = {"past": torch.full((2, 16), 3.0), "future": torch.full((2, 4), 3.0)}
    forecast = task.forward(model, batch)["prediction"]
    torch.testing.assert_close(forecast, batch["future"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("model", "method"),
    [("linear", "full"), ("linear", "head"), ("patchtst", "full"),
     ("patchtst", "head"), ("patchtst", "bias"), ("patchtst", "lora")],
)  # fmt: skip
def test_methods_lower_the_error(file: Path, model: str, method: str) -> None:
    plan = read_plan(run_of(file, model, method=method))
    site = open_site(plan)
    begin = start(plan, site.params())
    last = list(federate(plan, InProcess(site), begin))[-1][0]
    found = [
        evaluate(site.task, site.model, state.params, site.data.held_out())["loss"].value
        for state in (begin, last)
    ]
    assert found[1] < found[0]
    own = own_held_out(site, last, Nowhere())
    assert own is not None and own["examples"] == dict.fromkeys("abc", 15)
    values = own["metrics"]["loss"]
    assert values["worst_tenth"] == max(values["each"].values())
    assert values["mean"] == pytest.approx(found[1])


@pytest.mark.parametrize("method", ["lora", "bias", "layernorm"])
def test_a_linear_model_is_one_layer(file: Path, method: str) -> None:
    with pytest.raises(PlanError, match='one layer: use method = "full", or'):
        read_plan(run_of(file, method=method))


@pytest.mark.parametrize("model", ["linear", "patchtst"])
def test_a_stack_of_clients_ends_where_one_after_another_does(file: Path, model: str) -> None:
    check_stacked(run_of(file, model))


@pytest.mark.slow
def test_other_processes_give_the_same_bits(file: Path) -> None:
    check_processes(run_of(file))


def save_patchtst(folder: Path, **other: Any) -> Path:
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    shape = {"context_length": 16, "prediction_length": 4, "num_input_channels": 3}
    with seed_torch(3):
        config = PatchTSTConfig(**{**PATCHES, **shape, "norm_type": "layernorm", **other})
        PatchTSTForPrediction(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_folder_is_trained_and_exported_as_transformers_loads_it(
    file: Path, tmp_path: Path, method: str
) -> None:
    """The base was made for three channels, which share all weights."""
    base = save_patchtst(tmp_path / "base")
    done = Exported(run_of(file, str(base), method=method), tmp_path)
    batch, ours = done.forward()
    with torch.inference_mode():
        theirs = done.names["model"](past_values=batch["past"][..., None]).prediction_outputs
    torch.testing.assert_close(theirs[..., 0], ours["prediction"], atol=1e-5, rtol=1e-5)
    exec(done.usage, done.names)
    assert "time-series-forecasting" in done.card


def test_a_model_of_our_own_is_exported_whole(file: Path, tmp_path: Path) -> None:
    done = Exported(run_of(file, "patchtst"), tmp_path)
    batch, ours = done.forward()
    with torch.inference_mode():
        theirs = done.names["model"](past_values=batch["past"][..., None]).prediction_outputs
    torch.testing.assert_close(theirs[..., 0], ours["prediction"], atol=1e-5, rtol=1e-5)


def test_what_has_no_base_to_load_is_not_exported(file: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="random weights and lies in no folder"):
        Exported(run_of(file, "patchtst", method="lora"), tmp_path / "a")
    with pytest.raises(RunError, match="no model of transformers"):
        Exported(run_of(file), tmp_path / "b")


def test_a_head_of_another_horizon_is_new_and_the_rest_is_kept(tmp_path: Path) -> None:
    base = str(save_patchtst(tmp_path / "base"))
    same, other = Forecasting(base, 16, 4).build(()), Forecasting(base, 16, 6).build(())
    assert other.get_parameter("head.projection.weight").shape[0] == 6
    rest = other.state_dict()
    for name, x in same.state_dict().items():
        assert name.startswith("head.") or torch.equal(x, rest[name])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "nll"}, "gives a distribution"),
        ({"channel_attention": True}, "mixes its channels"),
        ({"context_length": 12}, "reads 12 steps"),
    ],
)
def test_models_that_forecast_otherwise_are_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    base = save_patchtst(tmp_path / "base", **changes)
    with pytest.raises(PlanError, match=words):
        Forecasting(str(base), 16, 4).build(())


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(PlanError, match="is a 'bert': a forecast needs a PatchTST"):
        Forecasting(str(tmp_path), 16, 4).build(())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"d_modle": 8}, "has no d_modle"),
        ({"patch_length": 20}, "a patch has 20 steps"),
        ({"channel_attention": True}, "mixes its channels"),
    ],
)
def test_settings_of_patches_are_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Forecasting("patchtst", 16, 4, settings).build(())


def test_settings_belong_to_one_model() -> None:
    with pytest.raises(ValueError, match='settings are for model = "patchtst"'):
        Forecasting(settings={"d_model": 8})


def test_windows_of_another_length_are_refused() -> None:
    table = Table({"past": torch.zeros(2, 3), "future": torch.zeros(2, 1)})
    with pytest.raises(DataError, match=r"past has 3 steps and task\.context = 4"):
        Forecasting(context=4, horizon=1).prepare(table)


def test_windows_are_not_held_out_at_random(file: Path) -> None:
    partition = {"name": "column", "column": "client", "held_out": 0.2}
    with pytest.raises(PlanError, match="overlap those trained on"):
        read_plan(run_of(file, partition=partition))


def test_the_task_tells_an_example_of_its_form(file: Path) -> None:
    task = Forecasting(context=16, horizon=4)
    site = open_run_site(read_plan(run_of(file)))
    real = next(iter(site.data.held_out()))
    assert {k: x.shape[1:] for k, x in task.example().items()} == {
        k: x.shape[1:] for k, x in real.items()
    }


def test_sites_compare_the_settings_of_the_model() -> None:
    tasks = [Forecasting(model="patchtst", settings={"d_model": width}) for width in (16, 32)]
    assert transforms_digest(tasks[0]) != transforms_digest(tasks[1])
    assert transforms_digest(tasks[0]) == transforms_digest(tasks[0])
