"""Several labels of a picture, and numbers, of folders that a table describes: read, trained,
measured at the owners, and exported."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from text_runs import Exported, run_of

from fedpeft import DataError, open_site, read_plan
from fedpeft.core.outputs import LOGITS
from fedpeft.tasks.targets import NUMBER, SEVERAL

LABELS = ("top", "left")


def write_pictures(folder: Path, other: str = "") -> Path:
    """Pictures of 8 by 8 whose upper half is white where "top" is a label, and whose left half is
    grey where "left" is; `metadata.csv` has the labels and how much of the picture is not black.

    Args:
      other: a label that the last picture has in place of its own.
    """
    folder.mkdir()
    rows = []
    for k in range(24):
        has = [label for at, label in enumerate(LABELS) if (k >> at) & 1]
        picture = Image.new("L", (8, 8))
        if "left" in has:
            picture.paste(128, (0, 0, 4, 8))
        if "top" in has:
            picture.paste(255, (0, 0, 8, 4))
        picture.save(folder / f"{k}.png")
        lit = sum(value > 0 for value in picture.tobytes()) / 64
        rows.append([f"{k}.png", "|".join(has), f"{lit:.4f}"])
    if other:
        rows[-1][1] = other
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "topics", "lit"], *rows])
    return folder


def plan_of(folder: Path, kind: str, **other: Any) -> dict[str, Any]:
    several = {"problem_type": SEVERAL, "labels": list(LABELS), "target": "topics"}
    learned = several if kind == "several" else {"problem_type": NUMBER, "target": "lit"}
    task = {"name": "image-classification", "model": "micro-vit", **learned}
    return run_of(task, folder, **{"rounds": 1, "method": "head", **other})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("labelled") / "pictures")


def test_the_column_beside_the_files_is_read(folder: Path) -> None:
    site = open_site(read_plan(plan_of(folder, "several")))
    every: Any = site.data
    targets = torch.cat([every.train["target"], every.test["target"]])
    # each of the four sets of labels six times, whatever was held out
    assert targets.sum(0).tolist() == [12, 12] and int(targets.prod(1).sum()) == 6
    lit = every.train["image"][:, 0].float().mean((1, 2))
    assert bool(((lit > 0) == (every.train["target"].sum(1) > 0)).all())


def test_a_label_that_the_plan_does_not_list_is_named(tmp_path: Path) -> None:
    site = plan_of(write_pictures(tmp_path / "pictures", "top|right"), "several")
    with pytest.raises(DataError, match=r"no label called 'right'\. Known: left, top"):
        open_site(read_plan(site))


@pytest.mark.parametrize("kind", ["several", "number"])
def test_owners_measure_it_and_the_export_says_what_it_tells(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    data = {"name": "table", "path": str(folder), "label": "none", "test_fraction": 0}
    divided = {"name": "iid", "clients": 3, "held_out": 0.25}
    asked = {"data": data, "partition": divided, "evaluate_at": "owners"}
    run = Exported(plan_of(folder, kind, **asked), tmp_path, merge=True)
    said = json.loads((run.folder / "config.json").read_text())
    assert said["problem_type"] == (SEVERAL if kind == "several" else NUMBER)
    wanted = list(LABELS) if kind == "several" else ["lit"]
    assert [said["id2label"][str(k)] for k in range(len(wanted))] == wanted
    rounds = (tmp_path / "run" / "rounds.jsonl").read_text()
    for name in ("exact_match", "micro_f1", "macro_f1") if kind == "several" else ("mae", "r2"):
        assert f'"{name}"' in rounds
    batch = next(iter(run.site.data.training(run.site.data.clients[0])))
    _, outputs = run.forward(batch)
    with torch.inference_mode():
        told = run.names["model"](pixel_values=batch["pixel_values"]).logits
    torch.testing.assert_close(told, outputs[LOGITS], atol=1e-5, rtol=0)
    exec(run.usage, {**run.names, "picture": Image.open(folder / "3.png")})
