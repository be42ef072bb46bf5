"""What the frozen beginning of a model makes of each example: computed once and kept in a file.

A file is named after all that its numbers depend on: base, rows, task and what computes. It holds
what may be as private as the examples, and lies where they lie: below $FEDPEFT_CACHE or
~/.cache/fedpeft. It may be deleted any time.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from pathlib import Path
from time import time, time_ns

import numpy as np
import torch
from torch import Tensor, nn

from fedpeft.compute.model_split import Cut, blank, find_cut
from fedpeft.compute.objective import Objective, forward_losses
from fedpeft.compute.scores import conclude, forward_measured
from fedpeft.compute.token_losses import is_large
from fedpeft.core.interfaces import Task
from fedpeft.core.outputs import Outputs
from fedpeft.core.seeds import seed_torch
from fedpeft.core.tensors import bytes_moved, count, move_to
from fedpeft.core.types import Batch, Summed, Table, Tensors, Weighted
from fedpeft.errors import reason_of

FEATURES = "fedpeft.features"
"""The column of rows and batches that holds them."""
CHUNK = 64
"""Rows computed together, in their order: whoever asks first, the bits are the same."""
PROBE = 13
"""Rows on which a cut is tried."""
LARGEST = 4 * 2**30
"""Bytes of one table's features beyond which they are not kept."""
ROOM = 16 * 2**30
"""Bytes of all files; beyond it those go that were not asked for the longest."""
DAY = 86400.0


@dataclass(frozen=True)
class Featured:
    """A task that goes on from features where a batch has them.

    Attributes:
      inputs: a batch, if in training nothing of it is read then but what rows have too: the rest is
        left blank.
    """

    task: Task
    cut: Cut
    inputs: Tensors | None = None

    @property
    def compares_with_base(self) -> Sequence[str]:
        names: Sequence[str] = getattr(self.task, "compares_with_base", ())
        return names

    @property
    def compares_examples(self) -> bool:
        """Whether the task's metrics do."""
        return bool(getattr(self.task, "compares_examples", False))

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        return self.task.build(classes, pretrained)

    def prepare(self, table: Table) -> Tensors:
        return self.task.prepare(table)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        own = {name: x for name, x in rows.items() if name != FEATURES}
        if self.inputs is None or generator is None:
            return {**self.task.batch(own, generator), FEATURES: rows[FEATURES]}
        kept = {n: own.get(n, blank(x, len(rows[FEATURES]))) for n, x in self.inputs.items()}
        return {**kept, FEATURES: rows[FEATURES]}

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        if FEATURES not in batch:
            return self.task.forward(model, batch, head)
        with self.cut.fed(batch[FEATURES]):
            return self.task.forward(model, batch, head)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return self.task.losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor | Summed]:
        return self.task.metrics(outputs, batch)

    def conclude(self, sums: Mapping[str, Weighted]) -> dict[str, float]:
        """What the task makes of sums over held-out examples."""
        return conclude(self.task, sums)

    def forward_losses(self, model: nn.Module, batch: Batch) -> Outputs:
        if FEATURES in batch:
            return self.forward(model, batch)
        return forward_losses(self.task)(model, batch)

    def forward_measured(self, model: nn.Module, batch: Batch) -> Outputs:
        if FEATURES in batch:
            return self.forward(model, batch)
        return forward_measured(self.task)(model, batch)

    def chunks(self, batch: Batch) -> Iterator[Batch]:
        """The task's, unless there are features, which it does not know of."""
        chunks = getattr(self.task, "chunks", None)
        if chunks is None or FEATURES in batch:
            yield batch
        else:
            yield from chunks(batch)


@dataclass(frozen=True)
class FeatureCache:
    """Where features stand in for the frozen beginning.

    Attributes:
      note: a line that says what is kept, or why nothing is; empty where there is nothing to keep.
      cut: None where nothing is kept.
    """

    note: str = ""
    cut: Cut | None = None
    inputs: Tensors | None = None
    train: Tensor | None = None
    test: Tensor | None = None

    def beside(self, train: Tensors, test: Tensors) -> tuple[Tensors, Tensors]:
        """The rows of both tables with what is kept of them."""
        if self.train is None or self.test is None:
            return train, test
        return {**train, FEATURES: self.train}, {**test, FEATURES: self.test}


def with_features(task: Task, kept: FeatureCache) -> Task:
    """The task as it is, or going on from features."""
    return task if kept.cut is None else Featured(task, kept.cut, kept.inputs)


def keep(
    task: Task,
    model: nn.Module,
    trained: Collection[str],
    train: Tensors,
    test: Tensors,
    setting: str,
) -> FeatureCache:
    """Find the cut and have both tables' features; the model's forwards are prepared for it, in
    place.

    What goes wrong here stops no run: an example that the task cannot take is its client's failure,
      in training.

    Args:
      setting: what the numbers depend on beside the model and the rows: the task and what computes.
    """
    try:
        return _keep(task, model, trained, train, test, setting)
    except Exception as error:  # parts that users write may raise anything, and a disk may be full
        return FeatureCache(f"features are not kept: {reason_of(error)}")


def _keep(
    task: Task,
    model: nn.Module,
    trained: Collection[str],
    train: Tensors,
    test: Tensors,
    setting: str,
) -> FeatureCache:
    if hasattr(task, "forward_measured"):
        return FeatureCache()  # held-out examples go through the model more than once
    device = next(model.parameters()).device
    few = {name: x[:PROBE] for name, x in train.items()}
    batch = _batch(task, few, device)
    if "input_ids" in batch and is_large(model, batch["input_ids"]):
        return FeatureCache()  # of each token a row, which is not kept, and costly to try
    params = {n: x.detach().requires_grad_() for n, x in model.named_parameters() if n in trained}
    objective = Objective(model, task)
    model.eval()
    cut = find_cut(model, trained, len(batch["mask"]), lambda: objective(params, batch))
    if cut is None:
        return FeatureCache()
    if reason := _obstacle(task, model, cut, train, test, batch):
        return FeatureCache(f"features at {cut.at!r} are not kept: {reason}")
    base = blake2b(
        f"{setting} {cut.at} {model} {getattr(model, 'config', '')}".encode(), digest_size=16
    )
    _add(base, {n: x for n, x in model.state_dict().items() if n not in trained})
    both = [_of(task, model, cut, rows, base.copy()) for rows in (train, test)]
    shape = "x".join(map(str, cut.shape))
    note = (
        f"features at {cut.at!r} ({shape}) are computed once an example; "
        f"{cut.share:.0%} of the parameters lie before"
    )
    return FeatureCache(note, cut, _unread(task, objective, params, cut, batch, few), *both)


def _batch(task: Task, rows: Tensors, device: torch.device) -> Batch:
    batch = task.batch(bytes_moved(rows, str(device)), None)
    return move_to({**batch, "mask": torch.ones(count(rows))}, str(device))


def _obstacle(
    task: Task, model: nn.Module, cut: Cut, train: Tensors, test: Tensors, batch: Batch
) -> str:
    """Why features cannot stand for examples; empty if they can."""
    if len(cut.shape) > 1 and any(x.ndim > 1 and not x.is_floating_point() for x in batch.values()):
        return "they have a row a token, and batches differ in length"
    bytes_ = max(count(rows) for rows in (train, test)) * prod(cut.shape) * 4
    if bytes_ > LARGEST:
        return f"they would take {bytes_ / 2**30:.1f} GiB"
    draws = torch.Generator().manual_seed(0)
    before = draws.get_state()
    task.batch({n: x[:PROBE] for n, x in train.items()}, draws)
    if not torch.equal(draws.get_state(), before):
        return "the task changes examples at random"
    still = _features(task, model, cut, batch)
    with seed_torch(0):
        before = torch.get_rng_state()
        moving = _features(task, model.train(), cut, batch)
        drawn = not torch.equal(torch.get_rng_state(), before)
    model.eval()
    return (
        "the frozen part draws at random in training (dropout)"
        if drawn or not torch.equal(still, moving)
        else ""
    )


def _features(task: Task, model: nn.Module, cut: Cut, batch: Batch) -> Tensor:
    with torch.no_grad():
        return cut.features(lambda: task.forward(model, batch))


def _unread(
    task: Task, objective: Objective, params: Tensors, cut: Cut, batch: Batch, rows: Tensors
) -> Tensors | None:
    """The batch, if losses are the same with all of it blank that the rows do not have."""
    same = {
        n: n in rows and x.dtype == rows[n].dtype and torch.equal(x.cpu(), rows[n])
        for n, x in batch.items()
    }
    if any(not same[n] and (n in rows or not x.is_floating_point()) for n, x in batch.items()):
        return None
    empty = {n: x if same[n] else blank(x, len(x)) for n, x in batch.items()}
    features = _features(task, objective.model, cut, batch)
    with cut.fed(features), torch.no_grad():
        unread = torch.equal(objective(params, empty), objective(params, batch))
    return {n: x.cpu() for n, x in batch.items()} if unread else None


def _of(task: Task, model: nn.Module, cut: Cut, rows: Tensors, name: blake2b) -> Tensor:
    """A table's features, from its file or into it. A file whose first rows are not what they are
    now is made anew."""
    device = next(model.parameters()).device
    if not count(rows):
        return torch.empty(0, *cut.shape)
    _add(name, rows)
    path = folder() / f"{name.hexdigest()}.npy"
    shape = (count(rows), *cut.shape)

    def chunk(at: int, size: int) -> Tensor:
        batch = _batch(task, {n: x[at : at + size] for n, x in rows.items()}, device)
        return _features(task, model, cut, batch).float().cpu()

    kept = _read(path, shape)
    if kept is None or not torch.allclose(kept[:PROBE], chunk(0, PROBE), rtol=1e-3, atol=1e-3):
        _write(path, shape, (chunk(at, CHUNK) for at in range(0, shape[0], CHUNK)))
        make_room(path.parent, ROOM)
        kept = _read(path, shape)
    if kept is None:
        raise OSError(f"{path} cannot be read")
    return kept


def folder() -> Path:
    """Where features lie."""
    named = os.environ.get("FEDPEFT_CACHE")
    return (Path(named).expanduser() if named else Path.home() / ".cache" / "fedpeft") / "features"


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The file as a tensor that is read where it is needed; None if there is none, or another's."""
    try:
        mapped = np.load(path, mmap_mode="c", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    if mapped.shape != shape or mapped.dtype != np.float32:
        return None
    with suppress(OSError):  # another's folder
        os.utime(path, ns=(time_ns(), path.stat().st_mtime_ns))
    return torch.from_numpy(mapped)


def _write(path: Path, shape: tuple[int, ...], chunks: Iterator[Tensor]) -> None:
    """Whole or not at all, whoever else is at it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": shape}
            )
            for x in chunks:
                file.write(x.contiguous().numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _add(name: blake2b, tensors: Tensors) -> None:
    for key, x in tensors.items():
        name.update(f"{key} {x.dtype} {tuple(x.shape)}".encode())
        name.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def make_room(folder: Path, limit: int) -> None:
    """Delete files, those first that were asked for longest ago, until all have `limit` bytes; who
    has one open keeps it. What a process that was killed left half done goes after a day."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):
            if part.stat().st_mtime < time() - DAY:
                part.unlink()
    used = 0
    for _, size, path in sorted(_files(folder), reverse=True):
        used += size
        if used > limit:
            with suppress(OSError):
                path.unlink()


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When it was asked for last, and bytes."""
    for path in folder.glob("*.npy"):
        with suppress(OSError):  # gone in between
            found = path.stat()
            yield found.st_atime, found.st_size, path
