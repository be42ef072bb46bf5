"""What cannot be exported is refused in one line, and nothing is left of it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import SMALL, Done
from torch import nn

from fedpeft import RunError, read_plan, start
from fedpeft.compute.trainable import trainable
from fedpeft.core.types import State
from fedpeft.export.export import export_run
from fedpeft.methods.transformer_layout import train_parts
from fedpeft.registry import OWN
from fedpeft.runs.checkpoint import save_checkpoint
from fedpeft.runs.execute import open_run_site
from fedpeft.runs.folder import create


@dataclass(frozen=True)
class Doubled:
    """A method that exporting knows nothing of: a second head whose outputs are added."""

    @property
    def pretrained(self) -> bool:
        return True

    def inject(self, model: nn.Module) -> nn.Module:
        head = model.get_submodule("classifier")
        second = nn.Linear(128, 10)
        second.register_module("first", head)
        model.set_submodule("classifier", second)
        return train_parts(model, [second], "")

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)


def without_rounds(path: Path, **changes: Any) -> Path:
    """A run as it is before its first round, with a checkpoint."""
    plan = read_plan({**SMALL, **changes})
    site = open_run_site(plan)
    folder = create(plan, path)
    save_checkpoint(folder.checkpoint, plan, start(plan, site.params()), {})
    return path


def refused(path: Path, out: Path, reason: str, merge: bool = False) -> None:
    """The export raises one line, and leaves nothing at `out` or beside it."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(RunError, match=reason) as error:
        export_run(path, out, merge, OWN)
    assert "\n" not in str(error.value)
    assert sorted(out.parent.rglob("*")) == before


def test_a_method_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    path = without_rounds(tmp_path / "run", method="test_export_errors:Doubled")
    refused(path, tmp_path / "out", "transformers and peft do not know")


def test_a_task_without_a_transformers_model_is_refused(tmp_path: Path) -> None:
    task = {
        "task": "parts:Points",
        "data": "parts:Blobs",
        "partition": {"name": "iid", "clients": 6},
    }
    refused(
        without_rounds(tmp_path / "run", method="full", **task),
        tmp_path / "out",
        "no model of transformers",
    )


@pytest.mark.parametrize("name", ["adapter", "prompt", "llama, prefix"])
def test_what_cannot_be_merged_is_refused(
    name: str, runs: Mapping[str, Done], tmp_path: Path
) -> None:
    if name not in runs:
        pytest.skip("no Llama: FEDPEFT_DATA names no folder with stories260k")
    refused(runs[name].folder.path, tmp_path / "out", "leave out --merge", merge=True)


def test_a_run_without_checkpoint_is_refused(tmp_path: Path) -> None:
    create(read_plan(SMALL), tmp_path / "run")
    refused(tmp_path / "run", tmp_path / "out", "no round of it is done")
    refused(tmp_path / "none", tmp_path / "out", "not a run's folder")


def test_only_a_new_or_an_empty_folder_is_written_to(
    runs: Mapping[str, Done], tmp_path: Path
) -> None:
    run = runs["bias"].folder.path
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    refused(run, tmp_path / "full", "is not empty")
    refused(run, tmp_path / "full" / "mine", "is a file")
    (tmp_path / "empty").mkdir()
    written = export_run(run, tmp_path / "empty")
    assert written == sorted((tmp_path / "empty").iterdir())
    assert {file.stat().st_mode for file in written} == {
        (tmp_path / "full" / "mine").stat().st_mode
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_after_an_error_in_the_middle_nothing_is_left(
    runs: Mapping[str, Done], tmp_path: Path
) -> None:
    copied = shutil.copytree(runs["full"].folder.path, tmp_path / "run")
    # Read for the card, when the model is written.
    (copied / "rounds.jsonl").write_text("damaged\n")
    refused(copied, tmp_path / "out", "damaged")


def test_tensors_of_another_shape_are_refused(runs: Mapping[str, Done], tmp_path: Path) -> None:
    plan, folder = runs["lora"].site.plan, create(runs["lora"].site.plan, tmp_path / "run")
    params = {"classifier.weight": torch.zeros(3, 128)}
    save_checkpoint(folder.checkpoint, plan, State(1, params), {})
    refused(folder.path, tmp_path / "out", "the model has .*10, 128.* of shape .3, 128.")
