"""What a task may have beside what every task has: small interfaces, of which it implements any
subset."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from fedpeft.core.outputs import Outputs
from fedpeft.core.types import Batch, Table, Tensors, Weighted


class InChunks(Protocol):
    """A task whose outputs are large: `chunks` gives the parts of a held-out batch that are
    measured one after another."""

    def chunks(self, batch: Batch) -> Iterator[Batch]: ...


class ForwardsLosses(Protocol):
    """A task whose outputs are large: `forward_losses` gives no more than `losses` and `metrics`
    need."""

    def forward_losses(self, model: nn.Module, batch: Batch) -> Outputs: ...


class ForwardsMeasured(Protocol):
    """A task whose metrics need more of a held-out batch than its losses do, such as what a model
    writes by itself: `forward_measured` gives it beside the outputs."""

    def forward_measured(self, model: nn.Module, batch: Batch) -> Outputs: ...


class WithExample(Protocol):
    """`example` is one small batch of the form of the task's data without the data: what has no
    gradient on it is not trained, in any process."""

    def example(self) -> Batch: ...


class WithLongestExample(Protocol):
    """A task whose example cannot just be repeated: `longest_example` is one as long as the task
    lets it be, by which costs are forecast."""

    def longest_example(self) -> Batch: ...


class OwnInputs(Protocol):
    """A task whose inputs are made by more than a tokenizer or the pixels of a picture.

    `input_settings` tells as plain values what becomes of an example, by which two sites are
    compared.
    `save_inputs` writes the files that make a library do the same.
    """

    def input_settings(self) -> Mapping[str, Any]: ...
    def save_inputs(self, folder: Path) -> None: ...


class LeavesOut(Protocol):
    """`unfit` gives by reason, in words after a number, the rows of which nothing is learned; they
    are counted, told and left out before the data are divided."""

    def unfit(self, table: Table) -> Mapping[str, Sequence[int]]: ...


class ComparesExamples(Protocol):
    """A task whose metrics compare held-out examples with each other, as a concordance does.

    They are measured on all held-out examples of one owner at once. `metrics` then gets the whole
    columns of outputs and batches, so that this is for outputs that are small.

    Attributes:
      compares_examples: whether it is so.
    """

    @property
    def compares_examples(self) -> bool: ...


class ChecksSums(Protocol):
    """A task whose metrics have bounds: `check_sums` raises ValueError for sums that no owner with
    so many held-out examples has. An owner that tells such sums is refused."""

    def check_sums(self, sums: Mapping[str, Weighted], examples: int) -> None: ...


class HasOpenings(Protocol):
    """A task whose models write: `openings` gives of the first rows the tokens after which a model
    writes, and the text that is the truth."""

    def openings(self, table: Table, number: int) -> list[tuple[list[int], str]]: ...


class HasOpeningInputs(Protocol):
    """A task whose models write of more than tokens: `opening_inputs` gives what they take beside
    those of `openings`, by the names of the model's arguments."""

    def opening_inputs(self, table: Table, number: int) -> list[Tensors]: ...


class TellsCurves(Protocol):
    """A task whose outputs are lines over steps, as forecasts are: `curves` gives what a model is
    `given`, what it `told`, and the `truth`, each (batch, steps), of a held-out batch."""

    def curves(self, outputs: Outputs, batch: Batch) -> Tensors: ...


class ComparesWithBase(Protocol):
    """A task whose loss compares with the model that the run starts from.

    Attributes:
      compares_with_base: the outputs of that model that the task needs, (batch, ...); its batches
        have them as `base/<output>`.
    """

    @property
    def compares_with_base(self) -> Sequence[str]: ...
