"""The tutorial about parts of one's own, from the blocks of its page."""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rounds import POINTS
from running import fedpeft

from fedpeft.core.conversation import DELTA, Answer, Message
from fedpeft.errors import PlanError, WireError
from fedpeft.plan.reading import read_plan
from fedpeft.registry import _installed_parts, names

PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "own-algorithm.md"
METADATA = "Metadata-Version: 2.1\nName: fedpeft-own\nVersion: 0.1\n"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The package of the page is installed, by what its pyproject.toml says."""
    points = tomllib.loads(blocks("toml")[0])["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "\n".join(f"{name} = {target}" for name, target in parts.items())
        for group, parts in points.items()
    ]
    info = tmp_path / "fedpeft_own-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "fedpeft_own.py").write_text("\n".join(blocks("python")))
    monkeypatch.syspath_prepend(str(tmp_path))
    _installed_parts.cache_clear()
    own = import_module("fedpeft_own")
    yield own
    del sys.modules["fedpeft_own"]
    _installed_parts.cache_clear()


def test_the_codec_drops_a_byte_and_no_more(own: ModuleType) -> None:
    x = {
        "a": torch.tensor([[1.0, -1.5], [3.14159274, 0.0]]),
        "none": torch.zeros(0, 3),
        "counts": torch.tensor([7, -7]),
    }
    blob = own.Float24().encode(x)
    y = own.Float24().decode(blob)
    # 3.14159274 is 0x40490FDB: without its last byte it is 0x40490F00
    assert torch.equal(y["a"], torch.tensor([[1.0, -1.5], [3.1415405273, 0.0]]))
    assert torch.equal(y["counts"], x["counts"]) and y["none"].shape == (0, 3)
    assert own.Float24().encode(y) == blob
    with pytest.raises(WireError):
        own.Float24().decode(blob[:-1])


def test_the_algorithm_shortens_what_is_long(own: ModuleType) -> None:
    def shorten(*entries: float) -> list[float]:
        delta = {"w": torch.tensor(entries), "n": torch.tensor(3)}
        answer = Answer("a", Message({DELTA: delta}, {}))
        short = own.NormCap(most=1.0)._shorten(answer).message.tensors[DELTA]
        assert short["n"].item() == 3
        return [float(x) for x in short["w"]]

    assert shorten(3.0, 4.0) == pytest.approx([0.6, 0.8])
    assert shorten(0.25, 0.5) == [0.25, 0.5]
    assert shorten(0.0, 0.0) == [0.0, 0.0]


def test_a_plan_names_them_and_refuses_what_does_not_fit(own: ModuleType, tmp_path: Path) -> None:
    assert "float24" in names("codec") and "norm_cap" in names("algorithm")
    plan = tmp_path / "own.toml"
    plan.write_text(blocks("toml")[1])
    # points instead of pictures: the same parts in a tenth of a second
    others = ("task=parts:Points", "data=parts:Blobs", "method=full")
    ended = fedpeft("run", plan, "--out", tmp_path / "run", *(f"--set={one}" for one in others))
    assert ended.exit_code == 0, ended.output
    assert "2/2 answered" in ended.stdout
    with pytest.raises(PlanError, match="norm_cap shortens single updates"):
        read_plan({**POINTS, "algorithms": ["norm_cap"], "exchange": "secure"})
    with pytest.raises(PlanError, match="most must be above 0, got 0"):
        read_plan({**POINTS, "algorithms": [{"name": "norm_cap", "most": 0}]})
