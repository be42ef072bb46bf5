"""From what a mechanism does to the (ε, δ) that it costs, by Google's `dp-accounting`.

Mechanisms describe themselves as data (`Event`); nothing but this module knows how they are
accounted.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import isfinite
from typing import Any

from fedpeft.core.types import Event
from fedpeft.errors import PlanError

ACCOUNTANTS = ("pld", "rdp")
"""Privacy loss distributions (Doroshenko et al., 2022, arXiv:2207.04380), close to exact; Rényi
differential privacy (Mironov, 2017, arXiv:1702.07476), an upper bound that is fast. Both for adding
or removing one unit."""
LARGEST = 1e6  # noise multipliers beyond it have never been wanted


def check_noise(clip_norm: float, noise_multiplier: float | None) -> None:
    """Raises ValueError for values that no Gaussian mechanism can have."""
    if not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive, got {clip_norm}")
    if noise_multiplier is None:
        return
    if not 0 <= noise_multiplier < float("inf"):
        raise ValueError(f"noise_multiplier must be at least 0 and finite, got {noise_multiplier}")
    if noise_multiplier and clip_norm == float("inf"):
        raise ValueError(
            "noise is a multiple of clip_norm: with noise_multiplier > 0, clip_norm must be finite"
        )


def epsilon(event: Event, participations: int, delta: float, accountant: str = "pld") -> float:
    """The ε at δ of so many participations; infinity where there is no noise."""
    if not participations:
        return 0.0
    # A run does not begin without it: `resume_accounting` refuses a plan that is not calibrated.
    assert event.noise_multiplier is not None
    return _epsilon(
        event.noise_multiplier, event.rate, event.times * participations, delta, accountant
    )


# A value of "pld" takes about a second, and every round in which the maximum did not grow asks for
# the same one.
@lru_cache(maxsize=256)
def _epsilon(noise: float, rate: float, times: int, delta: float, accountant: str) -> float:
    if not noise:
        return float("inf")
    dp = _library()
    gaussian = dp.GaussianDpEvent(noise)
    once = dp.PoissonSampledDpEvent(rate, gaussian) if rate < 1 else gaussian
    with _quiet():
        return float(
            _accountant(accountant).compose(dp.SelfComposedDpEvent(once, times)).get_epsilon(delta)
        )


def calibrate(
    event: Callable[[float], Event],
    participations: int,
    target: float,
    delta: float,
    accountant: str = "pld",
) -> float:
    """The smallest noise multiplier, to three digits, with which so many participations cost at
    most `target`.

    Raises:
      PlanError: there is none below `LARGEST`.
    """
    # The search is by "rdp", which takes milliseconds where "pld" takes a second.
    least = high = 1e-2
    while epsilon(event(high), participations, delta, "rdp") > target:
        least, high = high, high * 2
        if high > LARGEST:
            raise PlanError(
                f"no noise below {LARGEST:g} gives target_epsilon = {target} at delta = {delta}"
            )
    high = _bisect(lambda z: epsilon(event(z), participations, delta, "rdp") <= target, least, high)
    if accountant == "rdp":
        return high
    # the bound of "rdp" is above, and by less than this
    return _bisect(
        lambda z: epsilon(event(z), participations, delta, accountant) <= target, 0.6 * high, high
    )


def _bisect(enough: Callable[[float], bool], low: float, high: float) -> float:
    while high / low > 1 + 1e-3:
        # Three digits are relative, so the middle is the geometric one.
        middle = (low * high) ** 0.5
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def finite_epsilon(value: float) -> float | None:
    """JSON has no infinity: None is no guarantee."""
    return value if isfinite(value) else None


def _accountant(name: str) -> Any:
    if name == "rdp":
        from dp_accounting.rdp import RdpAccountant

        return RdpAccountant()
    from dp_accounting.pld import PLDAccountant

    return PLDAccountant()


def _library() -> Any:
    try:
        import dp_accounting
    except ImportError:
        raise PlanError(
            'a private plan needs the library dp-accounting: pip install "fedpeft[privacy]", or '
            "dp-accounting itself"
        ) from None
    return dp_accounting


@contextmanager
def _quiet() -> Iterator[None]:
    """The accountant logs a warning for each Rényi order that it leaves out, which only makes its
    bound larger."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
