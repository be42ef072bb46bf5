"""Arrays in files and tensors in memory, and what is held out of them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpeft import DataError, Plan, PlanError, read_plan
from fedpeft.core.types import Examples
from fedpeft.data.arrays import Arrays
from fedpeft.data.in_memory import Memory
from fedpeft.data.splits import hold_out


def saved(file: Path, **arrays: Any) -> Examples:
    np.savez(file, **arrays)
    return Arrays(str(file)).load()


def test_arrays_of_pictures_and_of_numbers(tmp_path: Path) -> None:
    picture = np.arange(2 * 5 * 4 * 3, dtype=np.uint8).reshape(2, 5, 4, 3)
    y = np.array([[3], [8]], dtype=np.uint8)
    got = saved(tmp_path / "a.npz", x_train=picture, y_train=y, x_test=picture, y_test=y)
    assert got.classes == ("3", "8")
    assert got.train.columns["label"].tolist() == [0, 1]
    assert got.train.columns["image"].shape == (2, 3, 5, 4)
    assert got.train.columns["image"][1, 2, 4, 3] == picture[1, 4, 3, 2]
    first = saved(
        tmp_path / "b.npz",
        x_train=picture.transpose(0, 3, 1, 2),
        y_train=y,
        x_test=picture,
        y_test=y,
    )
    assert torch.equal(first.train.columns["image"], got.train.columns["image"])
    grey = saved(
        tmp_path / "c.npz", x_train=picture[..., 0], y_train=y, x_test=picture[..., 0], y_test=y
    )
    assert grey.train.columns["image"].shape == (2, 1, 5, 4)
    plain = saved(
        tmp_path / "d.npz", x_train=np.ones((10, 7)), y_train=np.array(list("ababababab"))
    )
    assert (len(plain.train), len(plain.test), plain.classes) == (8, 2, ("a", "b"))
    assert plain.train.columns["x"].dtype == torch.float32
    tokens = saved(
        tmp_path / "e.npz", x_train=np.ones((10, 7), np.int32), y_train=np.arange(10) % 2
    )
    assert tokens.train.columns["x"].dtype == torch.int64


def test_arrays_under_other_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", X=np.ones((10, 2)), y=np.arange(10) % 2)
    got = Arrays(str(tmp_path / "x.npz"), x_train="X", y_train="y", classes=("no", "yes")).load()
    assert got.classes == ("no", "yes")
    with pytest.raises(
        DataError, match=r"no array called 'x_train'.*Known: X, y.*Set data\.x_train"
    ):
        Arrays(str(tmp_path / "x.npz")).load()


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x_train": np.ones((4, 2)), "y_train": np.arange(3)}, "has 4 rows"),
        ({"x_train": np.ones((4, 2)), "y_train": np.ones(4)}, "labels must be integers or text"),
        (
            {"x_train": np.ones((4, 2)), "y_train": np.eye(4, dtype=int)},
            r"labels must be .* \(4, 4\)",
        ),
        ({"x_train": np.full((4, 2), np.nan), "y_train": np.arange(4)}, "not finite"),
        (
            {"x_train": np.ones((4, 5, 5, 2), np.uint8), "y_train": np.arange(4)},
            r"has the shape \(4, 5, 5, 2\)",
        ),
        ({"x_train": np.array([{}] * 4), "y_train": np.arange(4)}, "without unpickling"),
    ],
)
def test_bad_arrays(arrays: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=match):
        saved(tmp_path / "x.npz", **arrays)


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match=r"x\.npz cannot be read"):
        Arrays(str(tmp_path / "x.npz")).load()
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(DataError, match="holds a single array"):
        Arrays(str(tmp_path / "x.npy")).load()
    with pytest.raises(DataError, match="there is no file"):
        Arrays("nowhere.npz").load()


def test_memory_keeps_what_it_is_given() -> None:
    x, y = torch.randn(10, 3), torch.arange(10) % 2
    got = Memory({"x": x, "label": y}, {"x": x[:4], "label": y[:4]}, ("no", "yes")).load()
    assert got.train.columns["x"] is x
    assert (len(got.test), got.classes) == (4, ("no", "yes"))
    cut = Memory({"x": x, "label": y, "text": list("abcdefghij")}).load()
    assert (len(cut.train), len(cut.test), cut.classes) == (8, 2, ("0", "1"))
    place = "abcdefghij".index(cut.test.columns["text"][0])
    assert torch.equal(cut.test.columns["x"][0], x[place])


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"x": torch.ones(3, 1)}, "no column 'label' among x"),
        ({"x": torch.ones(3, 1), "label": torch.arange(4)}, "4 labels, but column 'x' has 3 rows"),
        ({"label": torch.ones(3)}, "integers from 0 .* float32"),
        ({"label": torch.tensor([0, -1])}, "from -1"),
        ({"label": torch.tensor([0, 2])}, "a label 2, but only 2 classes"),
        ({"label": ["a", "b"]}, "the train data's are not"),
    ],
)
def test_bad_memory(columns: dict[str, Any], match: str) -> None:
    good = {"label": torch.tensor([0, 1])}
    with pytest.raises(DataError, match=match):
        Memory(columns, good, ("no", "yes")).load()


def test_data_in_memory_is_refused_by_toml() -> None:
    plan = Plan(data=Memory({"label": torch.arange(10) % 2}))
    with pytest.raises(PlanError, match="cannot be written to a file, such as data"):
        plan.toml()
    with pytest.raises(PlanError, match="needs the key 'train'"):
        read_plan('data = "memory"')


def test_holding_out_takes_the_same_share_of_every_class() -> None:
    label = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100)]
    train, test = hold_out(label, 0.2, seed=1)
    assert torch.bincount(label[test]).tolist() == [10, 6, 4]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(100))
    with pytest.raises(DataError, match="leaves nothing on one side"):
        hold_out(label[:3], 0.2, seed=1)


def test_arrays_of_an_hdf5_file_are_those_of_an_npz_file(tmp_path: Path) -> None:
    """As features of slides have it: half precision, texts as labels, and arrays nobody reads."""
    h5py = pytest.importorskip("h5py")
    x, y = np.arange(20, dtype=np.float16).reshape(10, 2) / 4, np.array(list("ababababab"))
    np.savez(tmp_path / "a.npz", features=x, label=y)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["slides/features"] = x
        file["label"] = y.astype(h5py.string_dtype())
        file["coordinates"] = np.zeros((3, 3))
    from_npz = Arrays(str(tmp_path / "a.npz"), x_train="features", y_train="label").load()
    assert isinstance(read_plan({"data": str(tmp_path / "a.h5")}).data, Arrays)
    found = Arrays(str(tmp_path / "a.h5"), x_train="slides/features", y_train="label").load()
    assert found.classes == from_npz.classes == ("a", "b")
    for side, other in ((found.train, from_npz.train), (found.test, from_npz.test)):
        assert side.columns["x"].dtype == torch.float32
        assert all(torch.equal(side.columns[name], other.columns[name]) for name in side.columns)
    with pytest.raises(DataError, match=r"Known: coordinates, label, slides/features"):
        Arrays(str(tmp_path / "a.h5")).load()


def test_a_file_that_is_no_hdf5_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "torn.h5").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(DataError, match=r"torn\.h5 cannot be read as HDF5: "):
        Arrays(str(tmp_path / "torn.h5")).load()


def test_without_h5py_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"x\.h5 is HDF5, which h5py reads: .*fedpeft\[hdf5\]"):
        Arrays(str(tmp_path / "x.h5")).load()


def test_a_single_value_is_no_array_of_examples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="array 'y_train' is a single value"):
        saved(tmp_path / "a.npz", x_train=np.ones((4, 2)), y_train=np.int64(3))
