"""The cards of exported folders: what they tell of the run."""

import re
from collections.abc import Mapping
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from exporting import SMALL, Done
from PIL import Image

from fedpeft import __version__, read_plan
from fedpeft.data.depth import name_window, window_in
from fedpeft.export.export import export_run
from fedpeft.export.model_card import _base_line, list_literal, partition_words
from fedpeft.runs.execute import execute, open_engine, open_run_site
from fedpeft.runs.folder import create, read_json, read_rounds


def front_matter(card: str) -> dict[str, Any]:
    values: dict[str, Any] = pytest.importorskip("yaml").safe_load(card.split("---\n")[1])
    return values


def test_the_card_tells_what_the_run_was(
    runs: Mapping[str, Done], folders: Mapping[str, Path]
) -> None:
    card, run = (folders["lora"] / "README.md").read_text(), runs["lora"]
    assert front_matter(card) == {
        "library_name": "peft",
        "pipeline_tag": "image-classification",
        "tags": ["fedpeft", "federated-learning", "lora"],
        "base_model": "micro-vit",
        "base_model_relation": "adapter",
    }
    line = read_rounds(run.folder)[-1]
    rows = dict(re.findall(r"^\| (\w.*?) \| (.*) \|$", card, re.M))
    assert rows["base model"] == "`micro-vit`"
    assert rows["method"] == "`lora`, 21,770 trained parameters"
    assert (rows["clients"], rows["rounds"], rows["seed"]) == ("120", "1", "1")
    assert rows["cohort"] == "2 clients a round"
    assert rows["bytes up, measured"].startswith(
        f"{line['bytes_up']:,} in all, {line['bytes_up'] / 2:,.0f} for"
    )
    assert rows["bytes down, measured"].startswith(f"{line['bytes_down']:,} in all")
    assert (
        rows["accuracy on held-out examples"] == f"{line['held_out']['accuracy']:.4f} after round 1"
    )
    assert rows["partition"] == f"`{(read_json(run.folder.partition) or {})['fingerprint']}`"
    assert rows["fedpeft"] == f"{__version__}, exported with {__version__}"
    plan = re.search("```toml\n(.*?)```", card, re.S)
    assert plan and read_plan(plan[1]) == run.site.plan


def test_the_card_of_a_model_from_scratch_claims_no_base(folders: Mapping[str, Path]) -> None:
    card = (folders["scratch"] / "README.md").read_text()
    assert "base_model" not in front_matter(card)
    assert front_matter(card)["library_name"] == "transformers"
    assert "its weights not used" in card


def test_a_card_s_lines_read_colours_for_a_model_that_sees_grey(
    folders: Mapping[str, Path],
) -> None:
    card = (folders["head"] / "README.md").read_text()
    lines = "\n".join(re.findall("```python\n(.*?)```", card, re.S))
    colours = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    found: dict[str, Any] = {"picture": colours}
    exec(lines, found)
    grey = found["processor"](images=colours.convert("L"), return_tensors="pt")
    assert (found["inputs"]["pixel_values"] == grey["pixel_values"]).all()


@pytest.mark.parametrize("window", [None, (100.0, 3000.0), "minmax", "percentile", "own"])
def test_a_card_brings_deep_and_turned_pictures_to_what_training_saw(
    window: str | tuple[float, float] | None, tmp_path: Path
) -> None:
    """A window that the plan leaves out is found while the run reads its pictures."""
    ramp = np.linspace(0, 4000, 30 * 24).reshape(30, 24).astype(np.uint16)
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for k in range(4):
            Image.fromarray(ramp // (k + 1)).save(tmp_path / "pictures" / name / f"{k}.png")
    data = {"name": "images", "path": str(tmp_path / "pictures"), "test_fraction": 0.25}
    data |= {} if window is None else {"window": list(window) if window[0] == 100 else window}
    few = {"partition": {"name": "iid", "clients": 2}, "method": "head"}
    plan = read_plan({**SMALL, **few, "data": data})
    folder = create(plan, tmp_path / "run")
    site = open_run_site(plan)
    next(iter(execute(folder, site, open_engine(folder, site))))
    export_run(folder.path, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "exif_transpose" in card
    if window == "own":
        assert "the window that their own file names" in card
        return
    found: dict[str, Any] = {"picture": Image.new("L", (2, 2))}
    exec(next(x for x in re.findall("```python\n(.*?)```", card, re.S) if "as_trained" in x), found)
    seen = plan.data.load().train.columns["image"]
    for picture, raw in zip(seen, map(seen.upright, range(len(seen))), strict=True):
        assert (np.asarray(picture) == np.asarray(found["as_trained"](raw))).all()
    turned = Image.new("RGB", (4, 2))
    turned.getexif()[0x0112] = 6
    assert found["as_trained"](turned).size == (2, 4)


def test_the_window_of_a_run_is_read_from_its_notes() -> None:
    for ends in ((0.0, 4095.0), (-1024.5, 1 / 3)):
        assert window_in(["moved", name_window(ends)]) == ends
    assert window_in(["moved"]) is None


def test_class_names_are_not_broken_by_a_card_s_lines() -> None:
    names = [f'a class, with a "name" of its own, number {k}' for k in range(40)]
    lines = list_literal("classes", names)
    assert len(lines) > 2
    found: dict[str, Any] = {}
    exec("\n".join(lines), found)
    assert found["classes"] == names


def test_a_run_cut_off_is_exported_as_far_as_it_came(tmp_path: Path) -> None:
    plan = read_plan({**SMALL, "rounds": 3, "method": "head", "evaluate_every": 3})
    site = open_run_site(plan)
    folder = create(plan, tmp_path / "run")
    next(iter(execute(folder, site, open_engine(folder, site))))
    export_run(folder.path, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| rounds | 1 of 3 |" in card
    assert "| accuracy on held-out examples | not measured |" in card


def test_the_card_of_a_merge_says_what_repeats_it(runs: Mapping[str, Done], tmp_path: Path) -> None:
    copytree(runs["lora"].folder.path, tmp_path / "run")
    (tmp_path / "run" / "contributions").mkdir()
    export_run(tmp_path / "run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`fedpeft merge STUDY FILES -o NEW` with the same files repeats it" in card
    assert "`fedpeft run plan.toml` with this" not in card


def test_a_card_has_no_path_of_the_machine_that_exported(folders: Mapping[str, Path]) -> None:
    card = (folders["lora"] / "README.md").read_text()
    assert 'base = "micro-vit"  # set this: fedpeft/assets/micro-vit of an installed' in card
    elsewhere = folders["lora"].parent / "bases" / "mine"
    elsewhere.mkdir(parents=True)
    line = _base_line(str(elsewhere))
    assert line.startswith('base = "mine"  # set this: the path of') and str(elsewhere) not in line
    assert _base_line("google/vit-base") == 'base = "google/vit-base"'


def test_the_card_of_owners_with_data_of_their_own_names_no_partition() -> None:
    assert partition_words({"fingerprint": None}).startswith("none: each client has examples")
    assert partition_words({"fingerprint": "f1"}) == "`f1`"
