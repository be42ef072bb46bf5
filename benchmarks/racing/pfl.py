"""Apple's `pfl`: `FederatedAveraging` on its `SimulatedBackend`, in one process."""

from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.racing.course import Course, Track, trained
from benchmarks.racing.models import forward


class Learner(nn.Module):
    """The model with the two functions that `pfl` calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(forward(self.model, x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        """Asked for before and after each client of the first round, which is not among the
        medians."""
        with torch.no_grad():
            return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class Timing(TrainingProcessCallback):  # type: ignore[misc]
    def __init__(self, track: Track) -> None:
        self.track = track

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        self.track.done()
        return not self.track.go(), Metrics()


def run(course: Course, track: Track) -> None:
    learner = Learner(course.model())
    everyone = iter([(k, client) for k, clients in enumerate(course.rounds) for client in clients])
    data = FederatedDataset(lambda who: Dataset(course.of(*who)), lambda: next(everyone))
    model = PyTorchModel(
        learner,
        lambda parameters, lr: torch.optim.SGD(
            [x for x in parameters if x.requires_grad], lr=lr, momentum=0.9, nesterov=True
        ),
        torch.optim.SGD(trained(learner).values(), lr=1.0),
    )
    algorithm = NNAlgorithmParams(
        central_num_iterations=len(course.rounds),
        evaluation_frequency=len(course.rounds) + 1,
        train_cohort_size=len(course.rounds[0]),
        val_cohort_size=None,
    )
    local = NNTrainHyperParams(
        local_num_epochs=1,
        local_learning_rate=course.settings["lr"],
        local_batch_size=course.settings["batch"],
    )
    if track.go():
        FederatedAveraging().run(
            algorithm, SimulatedBackend(data, data), model, local, None, [Timing(track)]
        )
    track.end(trained(learner.model))
