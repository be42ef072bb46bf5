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
from fedpeft.tasks.image_classification import ImageClassification
from fedpeft.tasks.language import LanguageTask
from fedpeft.tasks.text_classification import TextClassification
from fedpeft.tasks.text_to_image import TextToImage


@dataclass(frozen=True)
class Loader:
    """How `transformers` loads the models of a task.

    Attributes:
      auto: its class for the model.
      reader: its class for what makes inputs of pictures or texts.
      pipeline: its name for the task.
      classifies: whether the model has a new head, with a row for each class.
    """

    auto: str
    reader: str
    pipeline: str
    classifies: bool = True


IMAGES = Loader("AutoModelForImageClassification", "AutoImageProcessor", "image-classification")
TEXTS = Loader("AutoModelForSequenceClassification", "AutoTokenizer", "text-classification")
LANGUAGE = Loader("AutoModelForCausalLM", "AutoTokenizer", "text-generation", classifies=False)
DENOISER = Loader("UNet2DConditionModel", "", "text-to-image", classifies=False)


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


def read_result(path: Path, code: Code = REGISTERED) -> Result:
    """The result of the run in the folder `path`, whose plan may name the modules of `code`.

    Raises:
      RunError: there is no such run, no round of it is done, or its model is not one of
        `transformers`.
    """
    folder, plan = reopen(path, code)
    saved = load_checkpoint(folder.checkpoint, plan)
    if saved is None:
        raise RunError(f"{path} has no checkpoint yet: no round of it is done")
    if plan.personal:
        raise RunError(
            f"{path} cannot be exported: {list(plan.personal)} of its tensors are each client's own"
        )
    loader = _loader(plan, path)
    return Result(folder, plan, loader, _classes(folder, plan) if loader.classifies else (), saved)


def _loader(plan: Plan, path: Path) -> Loader:
    if isinstance(plan.task, ImageClassification):
        return IMAGES
    if isinstance(plan.task, TextClassification):
        return TEXTS
    if isinstance(plan.task, LanguageTask):
        return LANGUAGE
    if isinstance(plan.task, TextToImage):
        return DENOISER
    task = describe("task", plan.task)["name"]
    raise RunError(
        f"{path} cannot be exported: its task {task!r} has no model of transformers or diffusers; "
        "image-classification, text-classification, causal-lm and text-to-image have. "
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
