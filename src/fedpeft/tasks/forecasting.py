"""Forecasts of time series: the steps that follow a window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.catalogue import CATALOGUE
from fedpeft.core.facts import Fact
from fedpeft.core.outputs import PREDICTION, Outputs, head_input
from fedpeft.core.types import Batch, Table, Tensors
from fedpeft.errors import DataError, PlanError
from fedpeft.registry import describe
from fedpeft.tasks import scoring
from fedpeft.tasks.loader import Loader
from fedpeft.tasks.pretrained import config_of, forecaster

LINEAR, PATCHTST = "linear", "patchtst"
WHOLE = ("full", "head", "scratch")
"""The methods that train the one layer of the linear model."""
SMALL: Mapping[str, Any] = {
    "d_model": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "ffn_dim": 64,
    "patch_length": 16,
    "patch_stride": 8,
    # BatchNorm's running means would differ from client to client
    "norm_type": "layernorm",
    "pooling_type": None,
}
"""Of the model "patchtst", what it has in other places than `transformers`' own: it is small, and
its head sees all patches, as in the paper."""


class LinearForecaster(nn.Module):
    """x̂ = x_L + W(x − x_L) + b for a past x whose last value is x_L: NLinear (Zeng et al., 2023,
    arXiv:2205.13504). W and b begin at zero, so that it begins as "the last value goes on"."""

    def __init__(self, context: int, horizon: int) -> None:
        super().__init__()
        self.head = nn.Linear(context, horizon)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, past: Tensor) -> Tensor:
        """From (batch, context) to (batch, horizon)."""
        last = past[:, -1:]
        forecast: Tensor = last + self.head(past - last)
        return forecast


@dataclass(frozen=True)
class Forecasting:
    """The mean squared error of the `horizon` steps that follow `context` steps of one series.

    `loss` is this error and `mae` the mean absolute one, both on the scale of the data, which
    `data.name = "series"` standardises client by client. A window counts once.

    Attributes:
      model: "linear", "patchtst" (PatchTST, arXiv:2211.14730, small and with random weights), or a
        folder or hub name of a PatchTST. Channels are forecast independently.
      context, horizon: the steps of past and future; the data must have the same.
      settings: of "patchtst", keys of `transformers`' PatchTSTConfig, such as d_model.

    Raises:
      ValueError: a value out of range, or settings of another model.
      PlanError: no such model, or one that forecasts otherwise.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss", "mae")
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_LOGITS})
    reads_classes: ClassVar[bool] = False
    model: str = LINEAR
    context: int = 96
    horizon: int = 24
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.context, self.horizon) < 1:
            raise ValueError(
                "context and horizon are numbers of steps, at least 1, got "
                f"{self.context}, {self.horizon}"
            )
        if self.settings and self.model != PATCHTST:
            raise ValueError(f'settings are for model = "{PATCHTST}", got {self.model!r}')

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError for a method that has nothing to train in the linear model."""
        method = str(describe("method", plan.method)["name"])
        if self.model == LINEAR and method in CATALOGUE["method"] and method not in WHOLE:
            raise PlanError(
                f'method = "{method}" trains something beside a head, and the linear model is one '
                f'layer: use method = "{WHOLE[0]}", or task.model = "{PATCHTST}"'
            )

    @property
    def loader(self) -> Loader | None:
        """None for the linear model, which is none of `transformers`'."""
        if self.model == LINEAR:
            return None
        usage = (
            "import torch",
            f"past = torch.randn(1, {self.context}, 1)  # standardised, as in training",
            "print(model(past_values=past).prediction_outputs)",
        )
        return Loader(
            "PatchTSTForPrediction",
            "",
            "time-series-forecasting",
            classifies=False,
            usage=usage,
            unit="windows",
        )

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        if self.model == LINEAR:
            return LinearForecaster(self.context, self.horizon)
        if self.model == PATCHTST:
            return forecaster(self._own_config(), PATCHTST, pretrained=False)
        config = config_of(self.model)
        _check_config(config, self.model)
        if config.context_length != self.context:
            raise PlanError(
                f"model {self.model!r} reads {config.context_length} steps: set task.context and "
                f"data.context to it, not to {self.context}"
            )
        # a head of another horizon is new
        config.num_input_channels, config.prediction_length = 1, self.horizon
        return forecaster(config, self.model, pretrained)

    def _own_config(self) -> Any:
        from transformers import PatchTSTConfig

        ours = {
            "context_length": self.context,
            "prediction_length": self.horizon,
            "num_input_channels": 1,
        }
        try:
            config = PatchTSTConfig(**{**SMALL, **self.settings, **ours})
        except (TypeError, ValueError) as error:
            raise PlanError(f"task.settings = {dict(self.settings)}: {error}") from None
        if unknown := sorted(set(self.settings) - set(PatchTSTConfig().to_dict())):
            raise PlanError(f"task.settings: PatchTSTConfig has no {', '.join(unknown)}")
        if config.patch_length > self.context:
            raise PlanError(
                f"a patch has {config.patch_length} steps and task.context = {self.context}: set "
                "task.settings.patch_length to fewer"
            )
        _check_config(config, PATCHTST)
        return config

    def prepare(self, table: Table) -> Tensors:
        """Raises DataError: the data are no windows, or windows of another length."""
        found = {}
        for name, wanted in (("past", self.context), ("future", self.horizon)):
            x = scoring.column(table, name, "a forecast")
            if not isinstance(x, Tensor) or x.ndim != 2:
                raise DataError(
                    f"a forecast learns from a tensor {name!r} of shape (n, steps); with "
                    'data.name = "series" the data have it'
                )
            if x.shape[1] != wanted:
                key = "context" if name == "past" else "horizon"
                raise DataError(
                    f"the data's {name} has {x.shape[1]} steps and task.{key} = {wanted}: set "
                    f"data.{key} and task.{key} to the same number"
                )
            found[name] = x
        return found

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return {"past": rows["past"], "future": rows["future"]}

    def example(self) -> Batch:
        """One window of a rising line."""
        line = torch.linspace(-1, 1, self.context + self.horizon)[None]
        return {
            "past": line[:, : self.context],
            "future": line[:, self.context :],
            "mask": torch.ones(1),
        }

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        with head_input(model, head) as seen:
            if self.model == LINEAR:
                forecast = model(batch["past"])
            else:
                forecast = model(past_values=batch["past"][..., None]).prediction_outputs[..., 0]
        return {PREDICTION: forecast, **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return (outputs[PREDICTION].float() - batch["future"]).square().mean(1)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        error = outputs[PREDICTION].float() - batch["future"]
        return {"loss": error.square().mean(1), "mae": error.abs().mean(1)}

    def curves(self, outputs: Outputs, batch: Batch) -> Tensors:
        """What a report draws, on the scale of the data."""
        return {"given": batch["past"], "truth": batch["future"], "told": outputs[PREDICTION]}


def _check_config(config: Any, name: str) -> None:
    """Make sure that a model is a PatchTST that gives numbers and mixes no channels.

    Raises:
      PlanError: it is another model.
    """
    if getattr(config, "model_type", "") != PATCHTST:
        raise PlanError(
            f"model {name!r} is a {getattr(config, 'model_type', 'model')!r}: a forecast needs a "
            f'PatchTST by folder or hub name, "{PATCHTST}" or "{LINEAR}"'
        )
    if config.loss != "mse":
        raise PlanError(
            f"model {name!r} gives a distribution (loss = {config.loss!r}): a forecast here is one "
            'number a step, so name a model with loss = "mse"'
        )
    if config.channel_attention or not (config.share_embedding and config.share_projection):
        raise PlanError(
            f"model {name!r} mixes its channels or has weights of its own for each: a forecast "
            "here is of one series, so name a model whose channels are independent"
        )
