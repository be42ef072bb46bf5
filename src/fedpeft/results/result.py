"""What a run came to, read from its folder; the data are not needed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fedpeft.compute.trainable import tensors_of, write
from fedpeft.core.tensors import drop_prefixes
from fedpeft.core.types import Tensors
from fedpeft.errors import RunError
from fedpeft.plan.plan import Plan
from fedpeft.registry import REGISTERED, Code, describe
from fedpeft.runs.checkpoint import Checkpoint, load_checkpoint
from fedpeft.runs.folder import RunFolder, read_json, reopen
from fedpeft.tasks.loader import Loader


@dataclass(frozen=True)
class Result:
    """A run's last checkpoint and what is needed to make a model of it.

    Attributes:
      classes: the label names, in the order of the head's outputs; none of a model that does not
        classify.
    """

    folder: RunFolder
    plan: Plan
    loader: Loader
    classes: tuple[str, ...]
    checkpoint: Checkpoint

    @property
    def method(self) -> str:
        return str(describe("method", self.plan.method)["name"])

    @property
    def tensors(self) -> Tensors:
        """The method's tensors, without what an algorithm shares beside them."""
        return drop_prefixes(self.plan.local_shares, self.checkpoint.state.flat)

    def refuse(self, reason: str) -> RunError:
        """The error that says why this result cannot be exported."""
        return RunError(f"{self.folder.path} ({self.method}) cannot be exported: {reason}")


def read_result(path: Path, code: Code = REGISTERED, best: bool = False) -> Result:
    """The result of the run in the folder `path`, whose plan may name the modules of `code`.

    Args:
      best: take the round that the plan selects, and not the last one.

    Raises:
      RunError: there is no such run, no round of it is done, or its model is not one of
        `transformers`.
    """
    folder, plan = reopen(path, code)
    if best and not plan.select:
        raise RunError(
            f"{path} has no best round: its plan does not say by which metric; leave out --best, "
            'or run a plan with select = "accuracy" or another metric'
        )
    saved = load_checkpoint(folder.best if best else folder.checkpoint, plan)
    if saved is None:
        raise RunError(f"{path} has no checkpoint yet: no round of it is done")
    if plan.personal:
        raise RunError(
            f"{path} cannot be exported: {list(plan.personal)} of its tensors are each client's own"
        )
    loader = _loader(plan, path)
    classes: tuple[str, ...] = ()
    if loader.classifies:
        classes = _classes(folder, plan) if loader.outputs is None else loader.outputs
    return Result(folder, plan, loader, classes, saved)


def _loader(plan: Plan, path: Path) -> Loader:
    loader: Loader | None = getattr(plan.task, "loader", None)
    if loader is not None:
        return loader
    task = describe("task", plan.task)["name"]
    raise RunError(
        f"{path} cannot be exported: its task {task!r} has no model of transformers or diffusers, "
        "as all registered tasks but `module` have. "
        "The trained tensors are in checkpoint/state.safetensors"
    )


def _classes(folder: RunFolder, plan: Plan) -> tuple[str, ...]:
    """From the plan or the report of the partition; the data are loaded only if neither tells."""
    kept: Any = (read_json(folder.partition) or {}).get("classes")
    return plan.classes or tuple(map(str, kept or ())) or plan.data.load().classes


def fill(model: nn.Module, tensors: Tensors, result: Result) -> None:
    """Copy a run's tensors, named as the model has them, into it.

    Raises:
      RunError: the model has no such tensor, or one of another shape.
    """
    every = tensors_of(model)
    for name, x in tensors.items():
        if name not in every or every[name].shape != x.shape:
            has = list(every[name].shape) if name in every else "none"
            raise result.refuse(
                f"with these libraries the model has {has} for {name!r} of shape {list(x.shape)}"
            )
    write(model, tensors)
