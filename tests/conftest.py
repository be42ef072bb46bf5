"""What all tests share: no network, one thread, the same examples each time, and the folder of real
data."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from contributions import Study, study
from counting import save_llama, save_texts
from exporting import CASES, MERGED, Done, done, text_cases
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


@dataclass
class OnDemand(Mapping[str, Any]):
    """What each test asks for is made when it is first asked for."""

    names: Sequence[str]
    make: Callable[[str], Any]
    made: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        if name not in self.made:
            self.made[name] = self.make(name)
        return self.made[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@pytest.fixture(scope="session")
def runs(
    tmp_path_factory: pytest.TempPathFactory, real_data_if_any: Path | None
) -> Mapping[str, Done]:
    """Runs of every method, which the tests of exporting share."""
    root = tmp_path_factory.mktemp("runs")
    cases = {**CASES, **text_cases(root, real_data_if_any)}
    return OnDemand(list(cases), lambda name: done(root / f"run-{file_name(name)}", **cases[name]))


@pytest.fixture(scope="session")
def folders(
    runs: Mapping[str, Done], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """What is exported of these runs."""
    root = tmp_path_factory.mktemp("exported")

    def export(name: str) -> Path:
        run, folder = runs[name.removesuffix(", merged")], root / file_name(name)
        export_run(run.folder.path, folder, merge=name.endswith("merged"))
        return folder

    return OnDemand([*runs, *(f"{name}, merged" for name in MERGED)], export)


def file_name(name: str) -> str:
    return re.sub(r"\W+", "-", name)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_texts(tmp_path_factory.mktemp("texts"))
