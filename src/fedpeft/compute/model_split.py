"""Where a model's frozen beginning ends, and how to go on from there with what it once computed."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

LEAST_SHARE = 0.25
"""Of the parameters, without embeddings: what the frozen beginning must have to be worth a cut."""


class _Reached(Exception):
    """The pass has come to the cut; nothing after it is wanted."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


@dataclass(eq=False)
class Cut:
    """The first module with something trained; its first argument, the features, is all that comes
    of what is before.

    Attributes:
      at: its name.
      shape: of one example's features.
      share: of the parameters, without embeddings, that lie before it.
    """

    at: str
    shape: tuple[int, ...]
    share: float
    _fed: Tensor | None = field(default=None, repr=False)
    _stops: bool = field(default=False, repr=False)

    @contextmanager
    def fed(self, features: Tensor) -> Iterator[None]:
        """Inside, modules before the cut do nothing, and the one at the cut gets `features` (batch,
        ...)."""
        self._fed = features
        try:
            yield
        finally:
            self._fed = None

    def features(self, run: Callable[[], object]) -> Tensor:
        """What comes to the cut when the model is called by `run`, which does not go on from
        there."""
        self._stops = True
        try:
            run()
        except _Reached as reached:
            return reached.features
        finally:
            self._stops = False
        raise RuntimeError(f"the model was called without {self.at!r}")


@dataclass(eq=False)
class _Enter:
    """A hook before the forward of the module at the cut, so that hooks which come after it see
    what the module gets."""

    cut: Cut

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.cut._stops:
            raise _Reached(args[0])
        return None if self.cut._fed is None else (self.cut._fed, *args[1:])


@dataclass(eq=False)
class _Skip:
    """The forward of a module before the cut. Passed over, it gives what no number comes of
    unseen."""

    cut: Cut
    forward: Callable[..., Any]
    output: Any
    batch: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.cut._fed is None:
            return self.forward(*args, **kwargs)
        now = len(self.cut._fed)
        return tree_map_only(
            Tensor, lambda x: blank(x, now if len(x) == self.batch else len(x)), self.output
        )


def blank(x: Tensor, rows: int) -> Tensor:
    """Like `x`, with so many rows, and nothing in it: NaN, or zero for integers. It takes no
    memory."""
    nothing = (
        torch.full((), float("nan"), dtype=x.dtype)
        if x.is_floating_point()
        else torch.zeros((), dtype=x.dtype)
    )
    return nothing.to(x.device).expand(rows, *x.shape[1:])


@dataclass(eq=False)
class _Call:
    """A module's call, with the calls that it made."""

    name: str
    module: nn.Module
    first: Any = None
    output: Any = None
    inner: list["_Call"] = field(default_factory=list)


def find_cut(
    model: nn.Module, trained: Collection[str], batch: int, run: Callable[[], Tensor]
) -> Cut | None:
    """Put the cut as late as it can be; None where nothing much is before it.

    A cut is tried, from late to early: with NaN for everything that is passed over, `run` must give
    what it gave without the cut. So a residual around the module, or a second use of something
    before it, is never missed.

    Args:
      trained: names of the parameters that change; nothing that comes to the cut depends on them.
      batch: the number of examples that `run` calls the model with.
      run: calls the model in evaluation mode; gives numbers that depend on all of its output.
    """
    wanted, calls = _trace(model, run)
    learned = {
        id(x) for name, x in model.named_parameters(remove_duplicate=False) if name in trained
    }
    if [call.module for call in calls] != [model]:
        return None
    every = list(_flat(calls[0]))
    for call, before in reversed(list(_descend(calls[0], learned))):
        share = sum(_size(one.module) for one in before) / max(1, _size(model))
        once = all(
            sum(other.module is one.module for other in every) == 1 for one in (call, *before)
        )
        if share >= LEAST_SHARE and once and _is_features(call.first, batch):
            cut = Cut(call.name, tuple(call.first.shape[1:]), share)
            undo = _put(cut, call, before, batch)
            with cut.fed(call.first.detach()), torch.no_grad():
                got = run()
            if torch.allclose(got, wanted, rtol=1e-5, atol=1e-6):
                return cut
            undo()
    return None


def _is_features(x: Any, batch: int) -> bool:
    return (
        isinstance(x, Tensor)
        and x.is_floating_point()
        and x.ndim > 1
        and len(x) == batch
        and not x.requires_grad
    )


def _put(cut: Cut, call: _Call, before: list[_Call], batch: int) -> Callable[[], None]:
    """Pass over what is before the cut, and feed the module at it; returns what takes that back."""
    old = [(one.module, one.module.__dict__.get("forward")) for one in before]
    for one in before:
        shapes = tree_map_only(Tensor, lambda x: blank(x, len(x)) if x.ndim else x, one.output)
        one.module.forward = _Skip(cut, one.module.forward, shapes, batch)
    entrance = call.module.register_forward_pre_hook(_Enter(cut))

    def undo() -> None:
        entrance.remove()
        for module, forward in old:
            del module.forward
            if forward is not None:
                module.forward = forward

    return undo


def _descend(root: _Call, learned: set[int]) -> Iterator[tuple[_Call, list[_Call]]]:
    """Each call that may be the first with something trained, from the outside in, and the frozen
    ones before it."""
    node, before = root, list[_Call]()
    while not any(id(x) in learned for x in node.module.parameters(recurse=False)):
        holds = [any(id(x) in learned for x in one.module.parameters()) for one in node.inner]
        if not any(holds):
            return
        first = holds.index(True)
        before = [
            *before,
            *(one for one in node.inner[:first] if any(True for _ in one.module.parameters())),
        ]
        node = node.inner[first]
        yield node, before


def _flat(call: _Call) -> Iterator[_Call]:
    yield call
    for one in call.inner:
        yield from _flat(one)


def _size(module: nn.Module) -> int:
    return sum(
        x.numel()
        for part in module.modules()
        if not isinstance(part, nn.Embedding)
        for x in part.parameters(recurse=False)
    )


def _trace(model: nn.Module, run: Callable[[], Tensor]) -> tuple[Tensor, list[_Call]]:
    """What `run` gives, and the outermost calls."""
    outside = _Call("", model)
    stack = [outside]
    hooks = []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            call = _Call(name, module, args[0] if args else None)
            stack[-1].inner.append(call)
            stack.append(call)

        return hook

    def leave(module: nn.Module, args: object, output: Any) -> None:
        stack.pop().output = output

    for name, module in model.named_modules():
        hooks += [
            module.register_forward_pre_hook(enter(name)),
            module.register_forward_hook(leave),
        ]
    try:
        return run().detach(), outside.inner
    finally:
        for hook in hooks:
            hook.remove()
