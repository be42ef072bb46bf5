"""Tables: files of every format, written here, and the real sets where they lie."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from example_files import ROWS, WRITERS, save_picture, write_csv, write_lines, write_parquet

from fedpeft import DataError, PlanError, read_plan
from fedpeft.data.table import HubTable


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
        for text, label, site in zip(
            *(table.columns[n] for n in ("text", "label", "site")), strict=True
        ):
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
    online = {
        key: value
        for key, value in os.environ.items()
        if key not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    }
    ended = subprocess.run(
        [sys.executable, "-c", NOBODY_CALLED, *map(str, files)],
        env=online,
        capture_output=True,
        text=True,
        check=False,
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
    write_lines(
        file,
        [
            {"sentence": f"s{k}", "intent": k % 2, "remark": "yes" if k < 5 else "no"}
            for k in range(10)
        ],
    )
    found = HubTable(str(file)).load()
    assert found.classes == ("0", "1")
    told = HubTable(str(file), text="remark", label="sentence", test_fraction=0.5).load()
    assert set(told.train.columns["text"]) == {"yes", "no"}
    assert len(told.classes) == 10


def test_where_keeps_rows_and_drops_classes_that_vanished(tmp_path: Path) -> None:
    rows = [
        {"text": str(k), "label": "abc"[k % 3], "domain": ["oos", "home", None][k % 3]}
        for k in range(30)
    ]
    file = tmp_path / "x.parquet"
    write_parquet(file, rows)
    got = HubTable(str(file), where="domain != oos").load()
    assert got.classes == ("b", "c")
    assert len(got.train) + len(got.test) == 20
    assert set(got.train.columns["label"].tolist()) == {0, 1}
    assert HubTable(str(file), where="domain = 'home' and label != a").load().classes == ("b",)
    # '' is a missing value.
    assert HubTable(str(file), where="domain = ''").load().classes == ("c",)
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
        HubTable(str(tmp_path), subset=20, seed=seed).load().train.columns["text"]
        for seed in (1, 1, 2)
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
    assert HubTable(str(tmp_path / "x.parquet"), test_fraction=0.5).load().classes == (
        "z",
        "q",
        "a",
    )
    assert HubTable(
        str(tmp_path / "x.parquet"), test_fraction=0.5, where="text != x"
    ).load().classes == ("z", "a")


def test_pictures_in_a_table_as_bytes_as_paths_and_as_datasets_keeps_them(tmp_path: Path) -> None:
    import datasets

    save_picture(tmp_path / "pictures" / "p.png")
    content = (tmp_path / "pictures" / "p.png").read_bytes()
    write_parquet(tmp_path / "bytes.parquet", [{"img": content, "label": k % 2} for k in range(4)])
    write_csv(
        tmp_path / "paths.csv", [{"image": "pictures/p.png", "label": k % 2} for k in range(4)]
    )
    features = datasets.Features({"shot": datasets.Image(), "label": datasets.Value("int64")})
    kept = datasets.Dataset.from_dict(
        {"shot": [{"bytes": content, "path": None}] * 4, "label": [0, 1, 0, 1]}, features
    )
    kept.to_parquet(tmp_path / "kept.parquet")
    for name in ("bytes.parquet", "paths.csv", "kept.parquet"):
        got = HubTable(str(tmp_path / name), test_fraction=0.5).load()
        (picture, _) = got.train.columns["image"]
        assert (picture.size, picture.getpixel((3, 2))) == ((6, 4), (200, 10, 30)), name


# --- real sets ---


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
