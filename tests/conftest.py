"""What all tests share: no network, one thread, the same examples each time, and the folder of real data."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings
from rounds import plan_of, points_plan

from fedpeft.client import Site, open_site

torch.set_num_threads(1)
settings.register_profile("fedpeft", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("fedpeft")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that FEDPEFT_DATA names: real data sets and weights, which the repository does not hold."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FEDPEFT_DATA", beside)).expanduser()
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is no folder; FEDPEFT_DATA names another")
    return folder


@pytest.fixture(scope="session")
def digits() -> Site:
    """Real digits and the real model, opened once: all plans here differ only in what comes after that."""
    return open_site(plan_of())


@pytest.fixture(scope="session")
def points() -> Site:
    """A linear model on points, for what takes many rounds."""
    return open_site(points_plan())
