"""Pictures and captions: the losses of two towers by hand, what counts in them, examples with one
side, searches among held-out pairs, and what an export loads as."""

import json
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from captioned import COLOURS, save_table
from PIL import Image
from text_runs import Exported, check_stacked, run_of
from tiny_clip import SIDE, save_clip, save_siglip

from fedpeft import DataError, InProcess, PlanError, evaluate, federate, open_site, read_plan
from fedpeft.compute.objective import Objective
from fedpeft.core.outputs import PREDICTION
from fedpeft.core.types import Table, Weighted
from fedpeft.data.pictures import Pictures
from fedpeft.oneshot.fingerprints import transforms_digest
from fedpeft.tasks import contrast
from fedpeft.tasks.image_text import ImageText
from fedpeft.tasks.pixels import image_input

EYE, TWO = torch.eye(2), torch.ones(2, dtype=torch.bool)
APART = torch.eye(2, dtype=torch.bool)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_table(tmp_path_factory.mktemp("squares"))


def squares(captions: str = "abcd") -> Table:
    pictures = [Image.new("RGB", (SIDE, SIDE), colour) for colour in COLOURS.values()]
    return Table({"image": pictures, "text": list(captions), "label": torch.tensor([0, 0, 1, 1])})


@pytest.fixture(scope="module")
def gaps(file: Path) -> Table:
    """A pair, a picture alone, a caption alone, and nothing, as a column of a table has them."""
    items = [str(file.parent / "0.png"), str(file.parent / "1.png"), None, ""]
    return Table({"image": Pictures(items, range(4)), "text": ["a", None, "b", " "],
                  "label": torch.zeros(4, dtype=torch.int64)})  # fmt: skip


def test_pairs_are_told_from_each_other_both_ways() -> None:
    """Two orthonormal pairs at scales 1 and 2: −log(e^s / (e^s + 1))."""
    for scale, wanted in ((1, 0.313262), (2, 0.126928)):
        losses = contrast.softmax_losses(scale * EYE, TWO, APART)
        assert losses.tolist() == pytest.approx([wanted] * 2, abs=1e-6)
    uneven = torch.tensor([[log(2), 0.0], [log(3), 0.0]])  # rows 2/3 and 1/4, columns 2/5 and 1/2
    by_hand = [-(log(2 / 3) + log(2 / 5)) / 2, -(log(1 / 4) + log(1 / 2)) / 2]
    assert contrast.softmax_losses(uneven, TWO, APART).tolist() == pytest.approx(by_hand)


def test_the_sigmoid_loss_is_that_of_transformers(siglip: Path) -> None:
    task = ImageText(str(siglip), max_length=6)
    model: Any = task.build([]).eval().requires_grad_(False)
    batch = task.batch(task.prepare(squares()), None)
    assert batch["input_ids"].shape == (4, 6)
    ours = task.losses(task.forward(model, batch), batch).mean()
    read = {name: batch[name] for name in ("input_ids", "pixel_values")}
    assert float(ours) == pytest.approx(float(model(**read, return_loss=True).loss), rel=1e-5)


def test_the_softmax_loss_is_that_of_transformers(clip: Path) -> None:
    task = ImageText(str(clip), max_length=6)
    model: Any = task.build([]).eval().requires_grad_(False)
    batch = task.batch(task.prepare(squares()), None)
    ours = task.losses(task.forward(model, batch), batch).mean()
    read = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    assert float(ours) == pytest.approx(float(model(**read, return_loss=True).loss), rel=1e-5)


@pytest.mark.parametrize("loss", [contrast.softmax_losses, contrast.sigmoid_losses])
def test_filling_and_equal_captions_are_no_counterexamples(loss: Any) -> None:
    scores = torch.tensor([[1.0, 0, 5], [0, 1, 5], [5, 5, 5]])
    alone = loss(EYE, TWO, APART)
    filled = loss(scores, torch.tensor([True, True, False]), torch.eye(3, dtype=torch.bool))
    assert filled.tolist() == pytest.approx([*alone.tolist(), 0.0])
    equal = contrast.equal_rows(torch.tensor([[1], [2], [1]]))
    first, second, third = loss(scores, torch.ones(3, dtype=torch.bool), equal)
    pair = torch.tensor([[1.0, 0], [0, 1]])
    assert float(first) == pytest.approx(float(loss(pair, TWO, APART)[0]))
    assert float(second) > float(alone[1]) and float(third) > 0
    one = loss(torch.tensor([[0.0]]), torch.tensor([True]), torch.tensor([[True]]))
    assert float(one) == pytest.approx(0 if loss is contrast.softmax_losses else log(2))


def test_examples_with_one_side_come_to_lie_by_their_labels() -> None:
    """Of (1,0), (1,0), (0,1) at s = ln 3 the first two are alike: −log(3 / (3 + 1))."""
    vectors = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]])
    label, counts = torch.tensor([0, 0, 1, 0]), torch.tensor([True, True, True, False])
    scale = torch.full((4,), log(3))
    losses = contrast.label_losses(vectors, label, counts, scale)
    assert losses.tolist() == pytest.approx([-log(3 / 4)] * 2 + [0, 0])
    vectors.requires_grad_()
    nobody = torch.zeros(4, dtype=torch.bool)
    total = contrast.label_losses(vectors, label, nobody, scale).sum()
    [gradient] = torch.autograd.grad(total, [vectors])
    assert not gradient.any()


def test_a_search_finds_the_right_ones() -> None:
    scores = torch.tensor([[3.0, 1, 0], [9, 2, 0], [0, 0, 4]])
    counts, apart = torch.ones(3, dtype=torch.bool), torch.eye(3, dtype=torch.bool)
    found = contrast.search_recalls(scores, counts, apart)
    assert found["image_to_text_recall_1"].totals.tolist() == [1, 0, 1]
    assert found["text_to_image_recall_1"].totals.tolist() == [0, 1, 1]
    assert found["image_to_text_recall_5"].totals.tolist() == [1, 1, 1]
    assert found["chance"].totals.tolist() == pytest.approx([1 / 3] * 3)
    same = contrast.equal_rows(torch.tensor([[1], [1], [2]]))  # the first two captions are right
    found = contrast.search_recalls(scores, counts, same)
    assert found["image_to_text_recall_1"].totals.tolist() == [1, 1, 1]
    assert found["chance"].totals.tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    blind = contrast.search_recalls(torch.zeros(3, 3), counts, apart)
    assert blind["image_to_text_recall_1"].totals.tolist() == [0, 0, 0]
    fewer = contrast.search_recalls(scores, torch.tensor([True, False, True]), apart)["chance"]
    assert fewer.totals.tolist() == [0.5, 0, 0.5] and fewer.weights.tolist() == [1, 0, 1]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_rows_that_fill_up_change_no_gradient(kind: str, request: pytest.FixtureRequest) -> None:
    task = ImageText(str(request.getfixturevalue(kind)), max_length=6)
    model = task.build([]).eval()
    batch = task.batch(task.prepare(squares()), None)
    two = {**{name: x[:2] for name, x in batch.items()}, "mask": torch.ones(2)}
    filled = {**{name: x[:3] for name, x in batch.items()}, "mask": torch.tensor([1.0, 1, 0])}
    name = "text_model.encoder.layers.0.self_attn.v_proj.weight"
    objective, params = Objective(model, task), {name: dict(model.named_parameters())[name]}
    (g2, l2, _), (g3, l3, _) = (objective.gradient(params, one) for one in (two, filled))
    assert torch.allclose(l2, l3[:2], atol=1e-5) and g2[name].any()
    assert torch.allclose(g2[name], g3[name], atol=1e-5)
    measured = evaluate(task, model, {}, [filled])
    assert measured["loss"].weight == 2 and measured["image_to_text_recall_1"].weight == 2


def test_examples_without_a_side_are_told_or_learned_by_label(clip: Path, gaps: Table) -> None:
    strict = ImageText(str(clip), max_length=6)
    assert strict.unfit(gaps) == {
        "rows with neither a picture nor a caption": [3],
        "rows without a picture": [2],
        "rows without a caption": [1],
    }
    task = ImageText(str(clip), max_length=6, one_sided="label")
    assert task.unfit(gaps) == {"rows with neither a picture nor a caption": [3]}
    rows = task.prepare(gaps)
    assert rows["has_image"].tolist() == [True, True, False, False]
    assert rows["has_text"].tolist() == [True, False, True, False]
    pictures = task.batch({name: x[1:2] for name, x in rows.items()}, None)
    assert "pixel_values" in pictures and "input_ids" not in pictures
    told = task.forward(task.build([]).eval(), pictures)[PREDICTION]
    assert told.norm(dim=-1)[0].tolist() == pytest.approx([1, 0], abs=1e-5)
    unlabelled = Table({k: x for k, x in gaps.columns.items() if k != "label"})
    with pytest.raises(DataError, match="3 of 4 examples have a picture or a caption alone"):
        task.prepare(unlabelled)


def test_an_owner_of_pictures_alone_trains_their_tower_alone(clip: Path) -> None:
    task = ImageText(str(clip), max_length=6, one_sided="label")
    model = task.build([]).eval()
    table = Table({k: x for k, x in squares().columns.items() if k != "text"})
    batch = {**task.batch(task.prepare(table), None), "mask": torch.ones(4)}
    every = dict(model.named_parameters())
    names = [
        f"{side}_model.encoder.layers.0.self_attn.v_proj.weight" for side in ("vision", "text")
    ]
    gradient = Objective(model, task).gradient({name: every[name] for name in names}, batch)[0]
    assert gradient[names[0]].any() and not gradient[names[1]].any()
    measured = evaluate(task, model, {}, [batch])
    assert measured["chance"].weight == 0 and measured["loss"].value > 0


def test_what_does_not_fit_is_told(clip: Path, file: Path) -> None:
    with pytest.raises(DataError, match="image-text learns from a column 'text'"):
        ImageText(str(clip)).unfit(Table({"image": squares().columns["image"]}))
    with pytest.raises(DataError, match="holds 3, which is no caption"):
        ImageText(str(clip)).unfit(Table({"image": squares().columns["image"], "text": [3] * 4}))
    with pytest.raises(PlanError, match=r"max_length = 64, but .* takes at most 6"):
        ImageText(str(clip)).prepare(squares())
    with pytest.raises(PlanError, match="has not two towers"):
        ImageText("micro-vit").build([])
    with pytest.raises(PlanError, match="no one_sided called 'drop'"):
        read_plan({"task": {"name": "image-text", "model": "x", "one_sided": "drop"}})
    private = {"local": {"name": "dp_sgd", "noise_multiplier": 1.0}, "weighting": "uniform"}
    plan = run_of(settings(clip), file, privacy={"delta": 1e-3}, **private)
    with pytest.raises(PlanError, match="lets the examples of a batch change"):
        read_plan(plan)


def test_sums_that_no_owner_has_are_refused(clip: Path) -> None:
    task = ImageText(str(clip))
    task.check_sums({"chance": Weighted(1.0, 3.0)}, 3)
    for told in (Weighted(4.0, 3.0), Weighted(1.0, 4.0), Weighted(-1.0, 3.0)):
        with pytest.raises(ValueError, match="there are 3 examples"):
            task.check_sums({"image_to_text_recall_5": told}, 3)


def settings(model: Path, **other: Any) -> dict[str, Any]:
    return {"name": "image-text", "model": str(model), "max_length": 6, **other}


def test_lora_goes_into_both_towers(clip: Path, file: Path) -> None:
    names = open_site(read_plan(run_of(settings(clip), file))).params()
    assert {name.partition(".")[0] for name in names} >= {"vision_model", "text_model"}


def test_clients_in_a_stack_train_it(clip: Path, file: Path) -> None:
    check_stacked(run_of(settings(clip), file))


@pytest.mark.parametrize("case", ["lora", "full"])
def test_an_export_is_loaded_by_its_card_and_says_the_same(
    clip: Path, file: Path, tmp_path: Path, case: str
) -> None:
    run = Exported(run_of(settings(clip), file, rounds=1, method=case), tmp_path, False)
    table = squares()
    scope = {**run.names, "folder": str(run.folder), "texts": list("abcd")}
    scope["pictures"] = table.columns["image"]
    with torch.inference_mode():
        exec(run.usage, scope)
    _, outputs = run.forward(run.site.plan.task.batch(run.site.plan.task.prepare(table), None))
    first, second = outputs[PREDICTION].unbind(1)
    wanted = outputs["scale"].exp()[:, None] * first @ second.T
    assert torch.allclose(scope["scores"], wanted, atol=1e-3)
    assert "| chance on held-out pairs |" in run.card
    if case == "full":
        config = json.loads((run.folder / "config.json").read_text())
        assert config["architectures"] == ["CLIPModel"]


def test_owners_count_what_a_search_finds_among_their_pairs(clip: Path, file: Path) -> None:
    halves = {"name": "column", "column": "who", "held_out": 0.3}
    changes = run_of(settings(clip), file, rounds=1, cohort=2, evaluate_at=["owners"])
    plan = read_plan({**changes, "partition": halves})
    [(_, ledger)] = federate(plan, InProcess(open_site(plan)))
    told = ledger.reports["owners"]["metrics"]
    assert 0 < told["chance"]["mean"] < 1
    assert 0 <= told["image_to_text_recall_1"]["mean"] <= told["image_to_text_recall_5"]["mean"]


def test_two_pairs_are_enough(clip: Path, file: Path) -> None:
    """One to train on and one held out: nothing is learned, and nothing breaks."""
    lines = file.read_text().splitlines()[:2]
    few = file.with_name("few.jsonl")
    few.write_text("\n".join(lines))
    one = {"partition": {"name": "iid", "clients": 1}, "cohort": 1, "rounds": 1}
    changes = run_of(settings(clip), few, **one)
    plan = read_plan({**changes, "data": {**changes["data"], "test_fraction": 0.5}})
    [(_, ledger)] = federate(plan, InProcess(open_site(plan)))
    assert not ledger.failed and ledger.metrics["loss"].value == pytest.approx(0, abs=1e-6)


def test_sites_compare_both_what_the_pictures_and_what_the_captions_become(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    task = ImageText(str(folder))
    before, file = transforms_digest(task), folder / "processor_config.json"
    told = json.loads(file.read_text())
    told["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    file.write_text(json.dumps(told))
    image_input.cache_clear()
    assert transforms_digest(task) != before
