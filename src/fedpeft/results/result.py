"""What a run came to, read from its folder; the data are not needed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fedpeft.compute.trainable import tensors_of, write
from fedpeft.core.tensors import drop_prefixes, take_prefix
from fedpeft.core.types import Tensors
from fedpeft.errors import RunError
from fedpeft.plan.plan import Plan
from fedpeft.registry import REGISTERED, Code, describe
from fedpeft.runs.checkpoint import Checkpoint, load_checkpoint
from fedpeft.runs.folder import RunFolder, read_json, reopen
from fedpeft.storage.client_memory import Folder
from fedpeft.tasks.loader import Loader

NAMED = 5
"""Clients in an error."""


@dataclass(frozen=True)
class Result:
    """A run's last checkpoint and what is needed to make a model of it.

    Attributes:
      classes: the label names, in the order of the head's outputs; none of a model that does not
        classify.
      client: whose own model it is; "" for the common one.
      best: whether it is the best round's, and not the last one's.
    """

    folder: RunFolder
    plan: Plan
    loader: Loader
    classes: tuple[str, ...]
    checkpoint: Checkpoint
    client: str = ""
    best: bool = False

    @property
    def source(self) -> Path:
        """The file of the server's state that it was read from."""
        return self.folder.best if self.best else self.folder.checkpoint

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


def read_result(
    path: Path, code: Code = REGISTERED, best: bool = False, client: str = ""
) -> Result:
    """The result of the run in the folder `path`, whose plan may name the modules of `code`.

    Args:
      best: take the round that the plan selects, and not the last one.
      client: whose own model to take, where each client has one.

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
    if client:
        saved = _of_client(folder, plan, saved, client, best)
    elif plan.personal:
        raise RunError(
            f"{path} cannot be exported: {list(plan.personal)} of its tensors are each client's "
            f"own; export one client's model by --client NAME ({_some(saved)})"
        )
    loader = _loader(plan, path)
    classes: tuple[str, ...] = ()
    if loader.classifies:
        classes = _classes(folder, plan) if loader.outputs is None else loader.outputs
    return Result(folder, plan, loader, classes, saved, client, best)


def _of_client(
    folder: RunFolder, plan: Plan, saved: Checkpoint, client: str, best: bool
) -> Checkpoint:
    """The checkpoint with a client's own tensors among, or in place of, the common ones.

    Raises:
      RunError: clients have no models of their own, or this one has none here.
    """
    own_model = getattr(plan.local, "own_model", None)
    if not plan.personal and own_model is None:
        raise RunError(
            f"{folder.path}: its clients have no models of their own: leave out --client"
        )
    if best:
        raise RunError(
            f"{folder.path}: clients keep what they made last, and not what they had in the best "
            "round: leave out --best, or --client"
        )
    if client not in saved.state.accepted:
        raise RunError(
            f"{folder.path}: no reply of a client {client!r} was counted; name one of those with "
            f"models of their own: {_some(saved)}"
        )
    memory = Folder(folder.clients).load(client, saved.state.accepted[client])
    own = take_prefix("personal", memory)
    if own_model is not None:
        own = own_model(take_prefix("local", memory))
    if not own:
        raise RunError(
            f"{folder.path}: what {client!r} keeps is not in this folder; where clients are at "
            "sites of their own it lies there"
        )
    params = {**saved.state.params, **own}
    return replace(saved, state=replace(saved.state, params=params))


def _some(saved: Checkpoint) -> str:
    """The first of those whose replies were counted."""
    names = sorted(saved.state.accepted)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (", ".join(names[:NAMED]) or "none") + more


def _loader(plan: Plan, path: Path) -> Loader:
    loader: Loader | None = getattr(plan.task, "loader", None)
    if loader is not None:
        return loader
    task = describe("task", plan.task)["name"]
    raise RunError(
        f"{path} cannot be exported: its task {task!r} has no model of transformers or diffusers "
        "here. The trained tensors are in checkpoint/state.safetensors"
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
