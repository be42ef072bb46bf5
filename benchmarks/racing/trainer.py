"""A script as many write it: for each client a fresh Hugging Face `Trainer` on the same model, then
the mean."""

from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments

from benchmarks.racing.course import Course, Track, trained, write
from benchmarks.racing.models import forward


class Classifying(Trainer):  # type: ignore[misc]
    """The loss of any of the models here."""

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Tensor], *_: Any, **__: Any
    ) -> Tensor:
        return cross_entropy(forward(model, inputs["x"]), inputs["label"])


def together(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    x, label = zip(*rows, strict=True)
    return {"x": torch.stack(x), "label": torch.stack(label)}


def run(course: Course, track: Track) -> None:
    model = course.model()
    tensors = trained(model)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=course.settings["batch"],
            num_train_epochs=1,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        while track.go():
            clients = course.rounds[track.at]
            start = {name: x.detach().clone() for name, x in tensors.items()}
            total = {name: torch.zeros_like(x) for name, x in start.items()}
            for client in clients:
                write(model, start)
                train(course, model, arguments, course.of(track.at, client))
                for name, x in tensors.items():
                    total[name] += x.detach()
            write(model, {name: x / len(clients) for name, x in total.items()})
            track.done()
    track.end(tensors)


def train(
    course: Course, model: nn.Module, arguments: TrainingArguments, data: tuple[Tensor, Tensor]
) -> None:
    optimizer = course.optimizer(model)
    constant = LambdaLR(optimizer, lambda _: 1.0)
    rows: Any = list(zip(*data, strict=True))
    Classifying(model, arguments, together, rows, optimizers=(optimizer, constant)).train()
