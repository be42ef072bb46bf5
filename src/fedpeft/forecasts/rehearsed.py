"""A rehearsal with as little of the model as the plan's parts get by with."""

from torch import nn

from fedpeft.compute.device_memory import available
from fedpeft.errors import FedpeftError, PlanError
from fedpeft.forecasts.blueprint import MOST_OF_MEMORY, draw_with_numbers
from fedpeft.forecasts.costs import weight_bytes
from fedpeft.forecasts.rehearsal import Traffic, rehearse
from fedpeft.forecasts.stand_in import Holdings, stand_in_site


def rehearse_anyhow(
    holdings: Holdings, model: nn.Module, seconds: float
) -> tuple[Traffic, list[str]]:
    """The traffic, with the base as shapes alone, or, where a part computes something with the
    model, with its weights.

    Raises:
      PlanError: neither is possible.
    """
    try:
        return rehearse(stand_in_site(holdings, model), seconds), []
    except Exception as error:  # whatever a part makes of tensors without numbers
        first = error
    size, free = weight_bytes(model), available("cpu")
    if size > MOST_OF_MEMORY * free:
        raise PlanError(
            f"{_words(first)}. Parts of this plan compute with the model, whose weights "
            f"({size:,} bytes) are too large for a rehearsal here ({free:,} bytes are free): plan "
            "on a machine with more memory"
        ) from first
    real, here = draw_with_numbers(holdings.plan, holdings.classes)
    try:
        found = rehearse(stand_in_site(holdings, real), seconds)
    except FedpeftError:
        raise
    except Exception as error:  # parts that users write may raise anything
        raise PlanError(f"the plan's conversation fails: {_words(error)}") from error
    whose = "its weights" if here else "random weights"
    return found, [f"parts of this plan compute with the model: it was rehearsed with {whose}"]


def _words(error: BaseException) -> str:
    words = (str(error).strip().splitlines() or ["no reason given"])[0]
    return words if isinstance(error, FedpeftError) else f"{type(error).__name__}: {words}"
