"""Sums of features by class under noise that hides each example: one release by each client
(the Gaussian mechanism: Dwork and Roth, 2014, appendix A).

Each feature is shortened to at most C, x̃ = x·min(1, C/‖x‖), and a client tells of class c

    Σ_c x̃ + N(0, (√2·z·C)²·I)      n_c + N(0, (√2·z)²)

One example more or less, of class c, moves the sum of its class by at most C and the count of its
class by 1, and nothing else. Of both together, the sum in units of C, that is a step of at most
√(1² + 1²) = √2. The noise has the standard deviation √2·z in the same units, so that this is one
Gaussian mechanism of the noise multiplier z, for neighbours that differ by one example more or
less. An example in the place of another moves the pair by at most 2 (two classes: two sums by C,
two counts by 1; one class: its sum by 2·C), for which the noise multiplier is z/√2.

What follows is made of noisy numbers alone and tells no more: counts are rounded and at least 0,
and the sums of a class with the count 0 are 0.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from fedpeft.algorithms.feature_sums import COUNTS, SUMS, labelled_features
from fedpeft.core.secrets import Secret
from fedpeft.core.tensors import SMALLEST, shrink_factors

OWNER = "class_means"
RARE = 9.0
"""Standard deviations that no noise has: a normal number is beyond once in 10^19."""


def sum_with_noise(
    client: Any, weight: str, clip_norm: float, noise_multiplier: float
) -> dict[str, Tensor]:
    """By class the noisy sums of a client's shortened features, and the noisy counts.

    Args:
      weight: the name of the head's weight, (classes, features).
      clip_norm: C; `noise_multiplier`: z.

    Raises:
      PlanError: its examples have no labels.
    """
    classes, features = client.received[weight].shape
    # In float32 a sum of many examples moves by more than C, for which the noise is not made.
    sums = torch.zeros(classes, features, dtype=torch.float64)
    counts = torch.zeros(classes, dtype=torch.float64)
    for x, label, mask in labelled_features(client, weight):
        sums.index_add_(0, label, shorten(x.double(), clip_norm))
        counts.index_add_(0, label, mask.double())
    return add_noise(sums, counts, clip_norm, noise_multiplier, client.secret())


def shorten(x: Tensor, limit: float) -> Tensor:
    """Features (examples, features), each no longer than `limit`; what is not finite counts as
    zero."""
    factor = shrink_factors(x.norm(dim=1), limit)[:, None]
    return torch.where(factor < SMALLEST, 0.0, x * factor)


def add_noise(
    sums: Tensor, counts: Tensor, clip_norm: float, noise_multiplier: float, secret: Secret
) -> dict[str, Tensor]:
    """The noisy pair of sums (classes, features) and counts (classes,), both float32."""
    std = sqrt(2) * noise_multiplier
    own = secret.at(OWNER)
    told = counts + own.at(COUNTS).normal(counts.shape) * std
    whole = told.round().clamp_min(0)
    noisy = sums + own.at(SUMS).normal(sums.shape) * std * clip_norm
    noisy = torch.where(whole[:, None] > 0, noisy, 0.0)
    return {SUMS: noisy.float(), COUNTS: whole.float()}


def check_shortened(sums: Tensor, counts: Tensor, clip_norm: float, noise: float) -> None:
    """Raises ValueError for sums that are longer than shortening and noise ever make them.

    Args:
      sums, counts: as a client told them; `noise`: z.
    """
    std, (_, features) = sqrt(2) * noise, sums.shape
    examples = counts.double() + 0.5 + RARE * std
    most = clip_norm * (examples + std * (sqrt(features) + RARE))
    # a millionth for numbers that were rounded to float32
    if (sums.double().norm(dim=1) > most * (1 + 1e-6)).any():
        raise ValueError("its sums are longer than clip_norm and the noise allow")
