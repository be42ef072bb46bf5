"""A client's training by a trainer that asks for the whole model, such as TRL's `SFTTrainer`.

The trainer sees a copy of the client's model, whose frozen weights lie where the base's own lie,
and the client's records. The loss is the trainer's own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.compute.model_copy import (
    BaseChangedError,
    check_base,
    checksums,
    copy_model,
    restore,
)
from fedpeft.compute.trainable import tensors_of
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Data, LossFn
from fedpeft.core.seeds import fold
from fedpeft.core.tensors import sub
from fedpeft.core.types import Batch, Carry, Context, Event, Table, Tensors
from fedpeft.errors import PlanError
from fedpeft.local.own_code import (
    NO_NOISE,
    SEEDS,
    TRAINS_ALONE,
    check_function_name,
    check_result,
    load_function,
    make_arguments,
    run_trainer,
    seeded,
)
from fedpeft.registry import code

PLAIN = (str, bytes, bool, int, float, list, tuple, dict, type(None))
"""What a column of a data set may hold."""


@dataclass(frozen=True)
class ModelTraining:
    """What the function that a plan names gets, and makes a trainer of.

    Attributes:
      model: the client's model of `transformers`, with what travels as its only parameters that ask
        for a gradient. It is a copy: only its frozen weights lie where the base's own lie.
      seed: of this client in this round, from 0 to 2³² − 1.
      round: counted from 0.
      rounds: how many the plan has.
      folder: for files of the trainer's; it is deleted after the training.
    """

    model: Any
    seed: int
    round: int
    rounds: int
    folder: Path
    _base: nn.Module
    _records: Callable[[], Table]

    def dataset(self) -> Any:
        """The client's training records as a `datasets.Dataset`, with the columns that its source
        gave. It lies in `folder`, and so does what is made of it by `map`.

        Raises:
          PlanError: a column holds neither texts, numbers nor lists of these.
        """
        import pyarrow as pa  # type: ignore[import-untyped]
        from datasets import Dataset

        columns = {name: _as_list(name, x) for name, x in self._records().columns.items()}
        table = Dataset.from_dict(columns).data.table
        path = self.folder / "records.arrow"
        with pa.ipc.new_stream(path, table.schema) as file:
            file.write_table(table)
        return Dataset.from_file(str(path))

    def tokenizer(self) -> Any:
        """The tokenizer that lies beside the base.

        Raises:
          PlanError: the base lies nowhere.
        """
        from transformers import AutoTokenizer

        place = self.model.config._name_or_path
        if not place:
            raise PlanError(
                "training.tokenizer(): the base has random weights and lies in no folder: load a "
                "tokenizer in your function"
            )
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)

    def reference(self) -> Any:
        """The model that the run started from, for losses that compare with it (`ref_model` of
        `DPOTrainer`). It takes the memory of what is trained, and none for the base."""
        return copy_model(self._base, {}, {}).requires_grad_(False).eval()

    def arguments(self, kind: Callable[..., Any] | None = None, /, **settings: Any) -> Any:
        """`transformers.TrainingArguments`, or those of another `kind` such as `trl.SFTConfig`,
        with the seed and the folder of this training, without files, progress bars and reports;
        `settings` go before these."""
        device = next(self.model.parameters()).device.type
        return make_arguments(kind, settings, self.folder, self.seed, device)


@dataclass(frozen=True, kw_only=True)
class ModelTrainer:
    """A function of the user's gets a `ModelTraining` and returns a trainer, whose `train()` is a
    client's round, with a loss of its own.

    The function sees the whole model and the client's records as its source gave them. What the
    plan says of the task's loss and its batches holds for what is measured alone. It begins afresh
    in each round.

    Attributes:
      trainer: "package.module:function".
      arguments: for the call, by keyword.

    Raises:
      ValueError: `trainer` is no such name.
    """

    trainer: str = code()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    precision: ClassVar[str] = "float32"
    passes: ClassVar[float] = 1.0
    event: ClassVar[Event | None] = None
    reads_records: ClassVar[bool] = True
    trains_alone: ClassVar[str] = TRAINS_ALONE
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.OWN_LENGTH})
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.EXAMPLE_NOISE: NO_NOISE,
        Fact.PACKED: "{other} {what}, and a trainer of one's own makes its own batches: leave "
        "task.packing out, and let your trainer pack (`SFTConfig(packing=True)`)",
    }

    def __post_init__(self) -> None:
        check_function_name(self.trainer)

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError for what would be without effect and not be missed."""
        if not hasattr(plan.task, "loader"):
            raise PlanError(
                f'local = "model_trainer" needs a model of transformers, and the task '
                f'{type(plan.task).__name__} has another: set local = "trainer", which takes any'
            )
        if plan.attacks:
            raise PlanError(
                "attacks change a task's prepared examples, and a trainer of local = "
                '"model_trainer" reads the records themselves: leave attacks out, or set local = '
                '"trainer"'
            )
        if plan.compute.micro_batch:
            raise PlanError(
                'compute.micro_batch has no effect on a trainer of local = "model_trainer": leave '
                "it out, and set per_device_train_batch_size and gradient_accumulation_steps of "
                "your trainer"
            )

    def check_run(self) -> None:
        """Raises PlanError where there is no such function, before anybody trains."""
        load_function(self.trainer)

    def steps_for(self, size: int) -> int:
        return 1

    # an engine that takes steps, and a forecast of one, get the reason why there is none

    def batches(self, data: Data, received: Tensors, context: Context) -> Iterable[Batch]:
        raise _stepless()

    def begin(self, received: Tensors, memory: Tensors, context: Context) -> Carry:
        raise _stepless()

    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry:
        raise _stepless()

    def finish(
        self, carry: Carry, received: Tensors, memory: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        raise _stepless()

    def train_client(self, opened: Any) -> tuple[Tensors, Tensors, Tensors]:
        site, context, base = opened.client.site, opened.context, opened.objective.model
        if site.records is None:
            raise PlanError('local = "model_trainer" has no records of these examples to read')
        _check_model(base)
        start = {name: x.to(site.device) for name, x in opened.start.items()}
        about = {"seed": fold(context.seed, "trainer") % SEEDS, "round": context.round}
        model = copy_model(base, start, opened.objective.held).train()
        watched = self._base_watched(base, start, site.rebuild)
        with watched, _workplace(about["seed"]) as folder:
            training = ModelTraining(
                model,
                **about,
                rounds=context.rounds,
                folder=folder,
                _base=base,
                _records=lambda: site.records(context.client),
            )
            result = run_trainer(self.trainer, training, self.arguments)
        every = tensors_of(model)
        found = {name: every[name] for name in start if name in every}
        ended = check_result(self.trainer, found, start)
        return sub(ended, start), {}, _totals(result, context.size)

    @contextmanager
    def _base_watched(
        self, base: nn.Module, trained: Tensors, rebuild: Callable[[], nn.Module]
    ) -> Iterator[None]:
        """Make sure that nobody wrote to the base inside, whatever else went wrong there; if
        somebody did, it is made again."""
        before = checksums(base, trained)
        try:
            yield
        finally:
            try:
                check_base(before, checksums(base, trained), f"local.trainer = {self.trainer!r}")
            except BaseChangedError:
                restore(base, rebuild())
                raise


@contextmanager
def _workplace(seed: int) -> Iterator[Path]:
    """A folder that is deleted, streams of chance that begin with `seed`, and no progress bars of
    `datasets`."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with TemporaryDirectory(prefix="fedpeft-trainer-") as folder, seeded(seed):
            yield Path(folder)
    finally:
        if shown:
            enable_progress_bars()


def _stepless() -> PlanError:
    return PlanError("what a trainer of one's own takes is known only when it runs: run one round")


def _check_model(model: nn.Module) -> None:
    """Raises PlanError where a method or a task made something else of a model of transformers."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise PlanError(
            f'local = "model_trainer" needs a model of transformers, and the plan\'s is a '
            f'{type(model).__name__}: take another method, such as "lora", or set local = '
            '"trainer", which takes any model'
        )


def _totals(result: Any, size: int) -> Tensors:
    """The loss that `train()` tells, as a mean over a client's examples; nothing where it tells
    none."""
    told = getattr(result, "training_loss", None)
    if not isinstance(told, float):
        return {}
    return {"loss": torch.tensor(told * size), "examples": torch.tensor(float(size))}


def _as_list(name: str, column: Any) -> list[Any]:
    values = column.tolist() if isinstance(column, Tensor) else list(column)
    if other := next((x for x in values if not isinstance(x, PLAIN)), None):
        raise PlanError(
            f"column {name!r} holds {type(other).__name__}, and training.dataset() has texts, "
            'numbers and lists of these alone: set local = "trainer" for pictures and recordings'
        )
    return values
