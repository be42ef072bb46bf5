"""Classification with a torch module of the user's own."""

import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.core.outputs import LOGITS, Outputs, head_input
from fedpeft.core.types import Batch, Summed, Table, Tensors
from fedpeft.errors import DataError, PlanError
from fedpeft.registry import code, import_target
from fedpeft.tasks import scoring

LOSSES = ("cross_entropy",)
COUNTS = ("classes", "num_classes")


@dataclass(frozen=True, eq=False)
class ModuleTask:
    """A module from a batch of inputs (n, ...) to logits (n, classes). Methods need its head's
    name: `method.head`.

    What makes the module is called with torch's generators seeded, so that server and clients start
    from the same weights, and gets the number of classes where it takes an argument `classes` or
    `num_classes`.

    Attributes:
      module: "package.module:name" of a class or function, or the class or function itself, or a
        module made already, of which every model is then a copy.
      arguments: for the call, by keyword.
      column: the inputs; empty for `x`, or `image` where there is no `x`. Bytes go in as numbers
        from 0 to 1.
      loss: "cross_entropy".

    Raises:
      ValueError: no name and nothing to call, or an unknown loss.
      PlanError: the module cannot be imported or made; or it must go to another process and has no
        name to go by.
    """

    tells_classes: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = scoring.SCORES
    module: Any = code()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    column: str = ""
    loss: str = "cross_entropy"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if not (":" in self.module if isinstance(self.module, str) else callable(self.module)):
            raise ValueError(
                "module must be a name like package.module:Class, or a callable, got "
                f"{self.module!r}"
            )
        if not isinstance(self.module, str) and (name := _name_of(self.module)):
            object.__setattr__(self, "module", name)

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process."""
        if not isinstance(self.module, str | nn.Module):
            raise PlanError(
                f"{self.module!r} lives in this process only: "
                "to train in several, move it to the top of a module that can be imported and name "
                'it as "package.module:name", or use the engine "inprocess"'
            )
        return self.__dict__

    def __deepcopy__(self, memo: Any) -> "ModuleTask":
        return self  # it never changes

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        if isinstance(self.module, nn.Module):
            if not pretrained:
                raise PlanError(
                    "a module made already cannot start from scratch: give the class that makes it"
                )
            return deepcopy(self.module)
        make = _import_module(self.module) if isinstance(self.module, str) else self.module
        counts = {name: len(classes) for name in _parameters(make) if name in COUNTS}
        try:
            model = make(**{**counts, **self.arguments})
        except TypeError as error:
            raise PlanError(
                f"{self.module} cannot be called with {dict(self.arguments)}: {error}"
            ) from None
        if not isinstance(model, nn.Module):
            raise PlanError(f"{self.module} gives {type(model).__name__}, no torch.nn.Module")
        return model

    def prepare(self, table: Table) -> Tensors:
        name = self.column or ("x" if "x" in table.columns else "image")
        x = scoring.column(table, name, "a module")
        if not isinstance(x, Tensor):
            raise DataError(
                f"a module learns from a tensor; the column {name!r} holds {type(x).__name__}"
            )
        return {"x": x, "label": scoring.column(table, "label", "a module")}

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        x = rows["x"]
        return {"x": x.float() / 255 if x.dtype == torch.uint8 else x, "label": rows["label"]}

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        with head_input(model, head) as seen:
            logits = _logits(model, batch)
        return {LOGITS: logits, **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return scoring.losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor | Summed]:
        return scoring.scores(outputs, batch)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    out = model(batch["x"])
    logits = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise PlanError(
            "the module must give logits (n, classes), not "
            f"{getattr(out, 'shape', type(out).__name__)}"
        )
    return logits


def _name_of(make: Any) -> str:
    """The name under which any process finds the same thing; "" if there is none."""
    module, name = getattr(make, "__module__", None), getattr(make, "__qualname__", "")
    if isinstance(make, nn.Module) or module in (None, "__main__") or not name.isidentifier():
        return ""
    return f"{module}:{name}" if getattr(sys.modules.get(str(module)), name, None) is make else ""


def _import_module(name: str) -> Any:
    try:
        return import_target(name)
    except (ImportError, AttributeError) as error:
        raise PlanError(f"task.module = {name!r} cannot be imported: {error}") from None


def _parameters(make: Any) -> Sequence[str]:
    try:
        return list(signature(make).parameters)
    except (TypeError, ValueError):
        return []
