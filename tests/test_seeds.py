"""Torch's default generators inside `seeded`, and after it, on each kind of device that is here."""

import pytest
import torch

from fedpeft.core.seeds import seed_torch

DEVICES = [
    ("cpu", True),
    ("cuda", torch.cuda.is_available()),
    ("mps", torch.backends.mps.is_available()),
]


@pytest.mark.parametrize(("device", "here"), DEVICES, ids=[device for device, _ in DEVICES])
def test_draws_inside_follow_the_seed_and_those_outside_are_not_disturbed(
    device: str, here: bool
) -> None:
    if not here:
        pytest.skip(f"no {device} here")

    def draw() -> list[float]:
        numbers: list[float] = torch.rand(3, device=device).tolist()
        return numbers

    torch.manual_seed(5)
    undisturbed = [draw(), draw()]
    torch.manual_seed(5)
    before = draw()
    inside = []
    for seed in (1, 1, 2):
        with seed_torch(seed):
            inside.append(draw())
    with pytest.raises(ZeroDivisionError), seed_torch(3):
        draw()
        raise ZeroDivisionError
    assert [before, draw()] == undisturbed
    assert inside[0] == inside[1] != inside[2]
