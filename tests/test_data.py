"""Sources of examples: files of every format, written here, and the real sets where they lie."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedpeft import DataError, Plan, PlanError, read_plan
from fedpeft.core.types import Examples
from fedpeft.data.arrays import Arrays
from fedpeft.data.images import Images
from fedpeft.data.memory import Memory
from fedpeft.data.splits import hold_out
from fedpeft.data.table import HubTable

ROWS = [{"text": f"text {k}", "label": "cat" if k % 3 else "dog", "site": k % 2} for k in range(12)]


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def write_arrow(file: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(file, table.schema) as sink:
        sink.write_table(table)


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("\n".join(map(json.dumps, rows)))


def write_json(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text(json.dumps(rows))


def write_csv(file: Path, rows: list[dict[str, Any]], between: str = ",") -> None:
    lines = [between.join(rows[0]), *(between.join(map(str, row.values())) for row in rows)]
    file.write_text("\n".join(lines) + "\n")


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "parquet": write_parquet,
    "arrow": write_arrow,
    "jsonl": write_lines,
    "json": write_json,
    "csv": write_csv,
    "tsv": lambda file, rows: write_csv(file, rows, "\t"),
}


def save_picture(file: Path, colour: tuple[int, ...] = (200, 10, 30), size: tuple[int, int] = (6, 4)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", WRITERS)
def test_a_file_of_each_format_gives_the_same_examples(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"rows.{ending}"
    WRITERS[ending](file, ROWS)
    got = HubTable(str(file), test_fraction=0.25).load()
    assert (len(got.train), len(got.test), got.classes) == (9, 3, ("cat", "dog"))
    every = [*got.train.columns["text"], *got.test.columns["text"]]
    assert sorted(every) == sorted(row["text"] for row in ROWS)
    for table in (got.train, got.test):
        assert table.columns["label"].dtype == torch.int64
        for text, label, site in zip(*(table.columns[n] for n in ("text", "label", "site")), strict=True):
            row = ROWS[int(text.split()[1])]
            assert (got.classes[label], site) == (row["label"], row["site"])


@pytest.mark.parametrize("ending", WRITERS)
def test_a_folder_of_splits(ending: str, tmp_path: Path) -> None:
    folder = tmp_path / "a [folder] * of files"
    (folder / "data").mkdir(parents=True)
    WRITERS[ending](folder / "data" / f"train-00000.{ending}", ROWS[:4])
    WRITERS[ending](folder / "data" / f"train-00001.{ending}", ROWS[4:9])
    WRITERS[ending](folder / "data" / f"dev.{ending}", ROWS[9:10])
    WRITERS[ending](folder / "data" / f"test.{ending}", ROWS[10:])
    got = HubTable(str(folder)).load()
    assert got.train.columns["text"] == [f"text {k}" for k in range(9)]
    assert got.test.columns["text"] == ["text 10", "text 11"]
    assert HubTable(str(folder), test_split="validation").load().test.columns["text"] == ["text 9"]


NOBODY_CALLED = """
import sys
called = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        called.append((event, *map(str, arguments)))
        raise OSError("no network here")
sys.addaudithook(watch)
from fedpeft.data.table import HubTable
for file in sys.argv[1:]:
    assert len(HubTable(file).load().train)
assert not called, called
"""


def test_files_of_this_machine_are_read_without_a_word_to_any_other(tmp_path: Path) -> None:
    files = [tmp_path / f"rows.{ending}" for ending in WRITERS]
    for file in files:
        WRITERS[file.suffix[1:]](file, ROWS)
    online = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    ended = subprocess.run(
        [sys.executable, "-c", NOBODY_CALLED, *map(str, files)], env=online, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_the_order_of_the_rows_is_kept_and_nothing_is_left_in_a_cache(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", ROWS)
    write_lines(tmp_path / "test.jsonl", ROWS)
    before = HubTable(str(tmp_path)).load()
    changed = [{**row, "text": str(row["text"]).upper()} for row in ROWS]  # as many bytes as before
    write_lines(tmp_path / "train.jsonl", changed)
    after = HubTable(str(tmp_path)).load()
    assert before.train.columns["text"] == [row["text"] for row in ROWS]
    assert after.train.columns["text"] == [row["text"] for row in changed]


def test_columns_are_found_by_their_usual_names_or_as_the_plan_says(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    write_lines(file, [{"sentence": f"s{k}", "intent": k % 2, "remark": "yes" if k < 5 else "no"} for k in range(10)])
    found = HubTable(str(file)).load()
    assert found.classes == ("0", "1")
    told = HubTable(str(file), text="remark", label="sentence", test_fraction=0.5).load()
    assert set(told.train.columns["text"]) == {"yes", "no"}
    assert len(told.classes) == 10


def test_where_keeps_rows_and_drops_classes_that_vanished(tmp_path: Path) -> None:
    rows = [{"text": str(k), "label": "abc"[k % 3], "domain": ["oos", "home", None][k % 3]} for k in range(30)]
    file = tmp_path / "x.parquet"
    write_parquet(file, rows)
    got = HubTable(str(file), where="domain != oos").load()
    assert got.classes == ("b", "c")
    assert len(got.train) + len(got.test) == 20
    assert set(got.train.columns["label"].tolist()) == {0, 1}
    assert HubTable(str(file), where="domain = 'home' and label != a").load().classes == ("b",)
    assert HubTable(str(file), where="domain = ''").load().classes == ("c",)  # '' is a missing value
    with pytest.raises(DataError, match=r"leaves nothing of .*domain is any of: , home, oos"):
        HubTable(str(file), where="domain = bank").load()
    with pytest.raises(DataError, match="Did you mean 'domain'"):
        HubTable(str(file), where="domian = oos").load()
    with pytest.raises(PlanError, match="not of the form column = value"):
        read_plan({"data": {"name": "table", "path": "x", "where": "domain is oos"}})


def test_a_subset_is_drawn_by_the_table_alone(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"text": str(k), "label": k % 2} for k in range(100)])
    write_lines(tmp_path / "test.jsonl", ROWS[:0] + [{"text": "t", "label": k} for k in range(2)])
    first, again, other = (
        HubTable(str(tmp_path), subset=20, seed=seed).load().train.columns["text"] for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) == 20 == len(set(other))
    assert len(HubTable(str(tmp_path), subset=500).load().train) == 100


def test_hidden_labels_of_a_test_split_are_passed_over(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    for split, labels in (("train", [0, 1]), ("validation", [1]), ("test", [-1, -1])):
        rows = {"sentence": [f"{split} {k}" for k in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / f"{split}.parquet")
    got = HubTable(str(tmp_path)).load()
    assert got.classes == ("no", "yes")
    assert got.test.columns["text"] == ["validation 0"]


def test_declared_classes_keep_their_ids_whatever_is_seen(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "q", "a"])}
    )
    data = datasets.Dataset.from_dict({"text": list("abcd"), "label": [2, 0, 2, 0]}, features)
    data.to_parquet(tmp_path / "x.parquet")
    assert HubTable(str(tmp_path / "x.parquet"), test_fraction=0.5).load().classes == ("z", "q", "a")
    assert HubTable(str(tmp_path / "x.parquet"), test_fraction=0.5, where="text != x").load().classes == ("z", "a")


def test_pictures_in_a_table_as_bytes_as_paths_and_as_datasets_keeps_them(tmp_path: Path) -> None:
    import datasets

    save_picture(tmp_path / "pictures" / "p.png")
    content = (tmp_path / "pictures" / "p.png").read_bytes()
    write_parquet(tmp_path / "bytes.parquet", [{"img": content, "label": k % 2} for k in range(4)])
    write_csv(tmp_path / "paths.csv", [{"image": "pictures/p.png", "label": k % 2} for k in range(4)])
    features = datasets.Features({"shot": datasets.Image(), "label": datasets.Value("int64")})
    kept = datasets.Dataset.from_dict({"shot": [{"bytes": content, "path": None}] * 4, "label": [0, 1, 0, 1]}, features)
    kept.to_parquet(tmp_path / "kept.parquet")
    for name in ("bytes.parquet", "paths.csv", "kept.parquet"):
        got = HubTable(str(tmp_path / name), test_fraction=0.5).load()
        (picture, _) = got.train.columns["image"]
        assert (picture.size, picture.getpixel((3, 2))) == ((6, 4), (200, 10, 30)), name


BAD: dict[str, tuple[str, bytes, str]] = {
    "no parquet": ("x.parquet", b"nonsense", r"x\.parquet cannot be read: .*not a parquet file"),
    "truncated": ("x.jsonl", b'{"text": "a", "label"', r"x\.jsonl cannot be read"),
    "empty": ("x.csv", b"", r"x\.csv is empty"),
    "header alone": ("x.csv", b"text,label\n", r"x\.csv"),
    "other": ("x.docx", b"PK", r"x\.docx is no table: its name must end in \.parquet"),
    "no label": (
        "x.csv",
        b"text,remark\na,b\n",
        r"has no labels: none of its columns \(text, remark\) is called label",
    ),
    "no input": ("x.csv", b"words,label\na,b\n", r"set data\.image or data\.text to one of the columns words, label"),
    "gap": ("x.csv", b"text,label\na,0\nb,\n", r"1 of 2 examples of .* have no label in column 'label'"),
    "all gaps": ("x.csv", b"text,label\na,\nb,\n", r"all of 2 examples of .* have no label"),
    "measure": ("x.csv", b"text,label\na,0.5\nb,1.5\n", r"holds 0\.5, which is no class"),
    "no text": ("x.csv", b"text,label\na,0\n,1\na,1\na,0\n", r"have no 'text': leave them out with data\.where"),
    "lists": ("x.jsonl", b'{"text": "a", "label": [1]}\n', r"has no labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_named_with_its_reason(case: str, tmp_path: Path) -> None:
    name, content, match = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match):
        HubTable(str(tmp_path / name), test_fraction=0.5).load()


def test_bad_folders_and_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no file"):
        HubTable(str(tmp_path)).load()
    write_csv(tmp_path / "train.csv", ROWS)
    with pytest.raises(DataError, match=r"data\.label: no column called 'lable'\. Did you mean 'label'"):
        HubTable(str(tmp_path), label="lable").load()
    with pytest.raises(DataError, match="no split called 'holdout'"):
        HubTable(str(tmp_path), test_split="holdout").load()
    with pytest.raises(DataError, match="is what is trained on"):
        HubTable(str(tmp_path), test_split="train").load()
    write_json(tmp_path / "test.json", ROWS)
    with pytest.raises(DataError, match=r"files of 2 kinds \(\.csv, \.json\)"):
        HubTable(str(tmp_path)).load()
    with pytest.raises(PlanError, match="test_fraction must be between 0 and 1"):
        read_plan({"data": {"name": "table", "path": "x", "test_fraction": 1.5}})


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    save_picture(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(good[: len(good) // 2])
    rows = [{"image": name, "label": 0} for name in ("good.png", "cut.png", "gone.png")]
    write_csv(tmp_path / "x.csv", rows + rows[:1])
    table = HubTable(str(tmp_path / "x.csv"), test_fraction=0.25).load()
    sizes, reasons = [], []
    for side in (table.train, table.test):
        pictures = side.columns["image"]
        for k in range(len(pictures)):
            try:
                sizes.append(pictures[k].size)
            except DataError as error:
                reasons.append(str(error))
    assert sizes == [(6, 4), (6, 4)]
    assert sorted("cut.png" in reason for reason in reasons) == [False, True]
    assert any("gone.png cannot be read" in reason for reason in reasons)


def test_an_image_is_turned_upright_and_16_bits_become_8(tmp_path: Path) -> None:
    sideways = Image.new("RGB", (6, 4))
    exif = sideways.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    for name in "ab":
        (tmp_path / name).mkdir()
    sideways.save(tmp_path / "a" / "1.jpg", exif=exif)
    Image.fromarray(np.full((4, 6), 0x8040, dtype=np.uint16)).save(tmp_path / "b" / "1.png")
    sideways.save(tmp_path / "b" / "2.jpg")
    got = Images(str(tmp_path), test_fraction=0.34).load()
    pictures = {
        file: picture
        for side in (got.train, got.test)
        for file, picture in zip(side.columns["file"], side.columns["image"], strict=True)
    }
    assert pictures[os.path.join("a", "1.jpg")].size == (4, 6)
    assert pictures[os.path.join("b", "1.png")].getpixel((0, 0)) == 0x80


# --- folders of pictures --------------------------------------------------------------------------------------------


def test_folders_of_pictures(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        for k, name in enumerate(("dog", "cat")):
            for i in range(count):
                save_picture(tmp_path / split / name / f"{i}.png", (k, i, 7))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no picture")
    got = Images(str(tmp_path)).load()
    assert got.classes == ("cat", "dog")
    assert got.train.columns["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert [picture.getpixel((0, 0)) for picture in got.train.columns["image"]][2:4] == [(1, 2, 7), (0, 0, 7)]
    assert got.test.columns["file"] == [os.path.join("test", "cat", "0.png"), os.path.join("test", "dog", "0.png")]
    whole = Images(str(tmp_path / "train"), test_fraction=0.34).load()
    assert (len(whole.train), len(whole.test), whole.classes) == (4, 2, ("cat", "dog"))
    assert sorted(whole.test.columns["label"].tolist()) == [0, 1]


def test_unreadable_pictures_are_an_error_or_are_counted(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for k in range(3):
            save_picture(tmp_path / name / f"{k}.png")
    (tmp_path / "dog" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png cannot be read"):
        got = Images(str(tmp_path), test_fraction=0.5).load()
        list(got.train.columns["image"]) + list(got.test.columns["image"])
    with pytest.warns(UserWarning, match=r"1 of 6 pictures are left out; the first: .*1\.png"):
        got = Images(str(tmp_path), test_fraction=0.4, skip_unreadable=True).load()
    assert len(got.train) + len(got.test) == 5


def test_bad_folders_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder 'nowhere'"):
        Images("nowhere").load()
    with pytest.raises(DataError, match="no pictures with labels"):
        Images(str(tmp_path)).load()
    save_picture(tmp_path / "train" / "cat" / "0.png")
    save_picture(tmp_path / "test" / "cow" / "0.png")
    with pytest.raises(DataError, match="nothing is trained on: no class called 'cow'"):
        Images(str(tmp_path)).load()
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(DataError, match="dog has no pictures"):
        Images(str(tmp_path)).load()


# --- arrays and memory ----------------------------------------------------------------------------------------------


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
    first = saved(tmp_path / "b.npz", x_train=picture.transpose(0, 3, 1, 2), y_train=y, x_test=picture, y_test=y)
    assert torch.equal(first.train.columns["image"], got.train.columns["image"])
    grey = saved(tmp_path / "c.npz", x_train=picture[..., 0], y_train=y, x_test=picture[..., 0], y_test=y)
    assert grey.train.columns["image"].shape == (2, 1, 5, 4)
    plain = saved(tmp_path / "d.npz", x_train=np.ones((10, 7)), y_train=np.array(list("ababababab")))
    assert (len(plain.train), len(plain.test), plain.classes) == (8, 2, ("a", "b"))
    assert plain.train.columns["x"].dtype == torch.float32
    tokens = saved(tmp_path / "e.npz", x_train=np.ones((10, 7), np.int32), y_train=np.arange(10) % 2)
    assert tokens.train.columns["x"].dtype == torch.int64


def test_arrays_under_other_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", X=np.ones((10, 2)), y=np.arange(10) % 2)
    got = Arrays(str(tmp_path / "x.npz"), x_train="X", y_train="y", classes=("no", "yes")).load()
    assert got.classes == ("no", "yes")
    with pytest.raises(DataError, match=r"no array called 'x_train'.*Known: X, y.*Set data\.x_train"):
        Arrays(str(tmp_path / "x.npz")).load()


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x_train": np.ones((4, 2)), "y_train": np.arange(3)}, "has 4 rows"),
        ({"x_train": np.ones((4, 2)), "y_train": np.ones(4)}, "labels must be integers or text"),
        ({"x_train": np.ones((4, 2)), "y_train": np.eye(4, dtype=int)}, r"labels must be .* \(4, 4\)"),
        ({"x_train": np.full((4, 2), np.nan), "y_train": np.arange(4)}, "not finite"),
        ({"x_train": np.ones((4, 5, 5, 2), np.uint8), "y_train": np.arange(4)}, r"has the shape \(4, 5, 5, 2\)"),
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


# --- real sets ------------------------------------------------------------------------------------------------------


def test_cifar100_as_it_lies(real_data: Path) -> None:
    got = HubTable(str(real_data / "cifar100")).load()
    assert (len(got.train), len(got.test), len(got.classes)) == (7000, 2000, 100)
    assert got.classes[:2] == ("apple", "aquarium_fish")
    assert torch.bincount(got.train.columns["label"]).tolist() == [70] * 100
    assert got.train.columns["image"][6999].size == (32, 32)
    assert len(set(got.train.columns["noun"])) == 576


def test_trec6_and_clinc150_as_they_lie(real_data: Path) -> None:
    trec = HubTable(str(real_data / "trec6")).load()
    assert (len(trec.train), len(trec.test)) == (5452, 500)
    assert trec.classes == ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM")
    clinc = HubTable(str(real_data / "clinc150"), where="domain != oos", subset=100).load()
    assert (len(clinc.train), len(clinc.test), len(clinc.classes)) == (100, 4500, 150)
    assert "oos" not in clinc.test.columns["domain"]


def test_no_warning_is_given_and_the_progress_bars_are_as_before(tmp_path: Path) -> None:
    import datasets

    write_csv(tmp_path / "x.csv", ROWS)
    shown = datasets.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HubTable(str(tmp_path / "x.csv")).load()
    assert datasets.are_progress_bars_disabled() == shown
