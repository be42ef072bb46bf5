"""What all tests share: no network, one thread, the same examples each time, and the folder of real
data."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from contributions import Study, study
from counting import save_llama, save_texts
from exporting import CASES, MERGED, Done, done, loaded_elsewhere, text_cases
from hypothesis import settings
from rounds import plan_of, points_plan

from fedpeft.export.export import export_run
from fedpeft.rounds.site import Site, open_site

torch.set_num_threads(1)
CACHE = TemporaryDirectory()
os.environ["FEDPEFT_CACHE"] = CACHE.name
os.environ["XDG_DATA_HOME"] = f"{CACHE.name}/data"
settings.register_profile(
    "fedpeft", deadline=None, derandomize=True, database=None, max_examples=50
)
settings.load_profile("fedpeft")


@pytest.fixture(scope="session")
def real_data_if_any() -> Path | None:
    """Real data sets and weights, which the repository does not hold: what FEDPEFT_DATA names, or
    lies beside it."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FEDPEFT_DATA") or beside).expanduser()
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def real_data(real_data_if_any: Path | None) -> Path:
    """The same, for tests that are nothing without."""
    if real_data_if_any is None:
        pytest.skip("no real data: FEDPEFT_DATA names no folder")
    return real_data_if_any


@pytest.fixture(scope="session")
def digits() -> Site:
    """Real digits and the real model, opened once: all plans here differ only in what comes after
    that."""
    return open_site(plan_of())


@pytest.fixture(scope="session")
def points() -> Site:
    """A linear model on points, for what takes many rounds."""
    return open_site(points_plan())


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """An invitation and its clients' files, which no test changes."""
    return study(tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="session")
def runs(
    tmp_path_factory: pytest.TempPathFactory, real_data_if_any: Path | None
) -> dict[str, Done]:
    """Runs of every method, which the tests of exporting share."""
    root = tmp_path_factory.mktemp("runs")
    cases = {**CASES, **text_cases(root, real_data_if_any)}
    return {
        name: done(root / f"run-{k}", **changes) for k, (name, changes) in enumerate(cases.items())
    }


@pytest.fixture(scope="session")
def folders(runs: Mapping[str, Done], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is exported of these runs, with the logits that were computed elsewhere beside each
    folder."""
    root = tmp_path_factory.mktemp("exported")
    made = {name: root / re.sub(r"\W+", "-", name) for name in runs}
    made |= {f"{name}, merged": root / re.sub(r"\W+", "-", f"{name}, merged") for name in MERGED}
    of = {}
    for name, folder in made.items():
        of[folder] = runs[name.removesuffix(", merged")]
        export_run(of[folder].folder.path, folder, merge=name.endswith("merged"))
    loaded_elsewhere(of, root / "cache")
    return made


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_texts(tmp_path_factory.mktemp("texts"))
