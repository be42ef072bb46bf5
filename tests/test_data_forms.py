"""Tables in the forms that people save: separators, encodings, text that looks like something else,
and pictures with a table beside."""

import gzip
import json
import re
from logging import WARNING
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_files import save_picture
from PIL import Image
from running import fedpeft

from fedpeft import DataError, PlanError, read_plan
from fedpeft.core.types import Table
from fedpeft.data.short_forms import source
from fedpeft.data.table import HubTable
from fedpeft.oneshot.keys import Trust
from fedpeft.partitions.lists import Lists
from fedpeft.registry import names
from fedpeft.storage.text_files import encoding_of, read_text

ROWS = [("schön, gut", "ja"), ('er sagte "nein"', "nein"), ("Äpfel; Birnen", "ja"), ("x", "nein")]


def csv_of(separator: str) -> str:
    cells = [["text", "label"], *([f'"{a.replace(chr(34), 2 * chr(34))}"', b] for a, b in ROWS)]
    return "\n".join(separator.join(row) for row in cells) + "\n"


def rows_of(table: Table, classes: tuple[str, ...]) -> set[tuple[str, str]]:
    labels = [classes[k] for k in table.columns["label"].tolist()]
    return set(zip(table.columns["text"], labels, strict=True))


def load(file: Path, **settings: Any) -> set[tuple[str, str]]:
    got = HubTable(str(file), **{"test_fraction": 0.5, **settings}).load()
    return rows_of(got.train, got.classes) | rows_of(got.test, got.classes)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "utf-16-le"])
def test_separators_and_encodings_are_found_and_told(
    separator: str, encoding: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(csv_of(separator).encode(encoding))
    with caplog.at_level(WARNING, "fedpeft"):
        assert load(file) == set(ROWS)
    assert (repr(separator) in caplog.text) == (separator != ",")
    assert ("the encoding" in caplog.text) == (not encoding.startswith("utf-8"))


def test_what_the_plan_says_goes_first(tmp_path: Path) -> None:
    file = tmp_path / "x.csv.gz"
    file.write_bytes(gzip.compress(csv_of("~").encode("utf-32")))
    assert load(file, separator="~", encoding="utf-32") == set(ROWS)
    with pytest.raises(DataError, match=r"cannot be read in the encoding 'ascii'.*data\.encoding"):
        load(file, separator="~", encoding="ascii")
    with pytest.raises(PlanError, match="separator is one character"):
        read_plan({"data": {"name": "table", "path": "x", "separator": "::"}})
    plain = read_plan({"data": {"name": "table", "path": "x"}}).toml()
    assert not any(key in plain for key in ("separator", "encoding", "window"))


def test_tables_that_end_in_tsv_may_have_commas(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text(csv_of(","))
    assert load(tmp_path / "x.tsv") == set(ROWS)


def test_one_column_has_no_separator(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "x.csv").write_text("text\none\ntwo\nthree\nfour\n")
    got = HubTable(str(tmp_path / "x.csv"), label="none", test_fraction=0.5).load()
    assert {*got.train.columns["text"], *got.test.columns["text"]} == {
        "one",
        "two",
        "three",
        "four",
    }
    assert caplog.text == ""


def test_na_and_null_are_text_and_only_nothing_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["NA", "null", "None", "nan", "N/A", "true"]
    lines = [f"{word},{label}" for word in words for label in ("yes", "NA")]
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    with caplog.at_level(WARNING, "fedpeft"):
        assert load(tmp_path / "x.csv") == {(w, label) for w in words for label in ("yes", "NA")}
    assert "'label' that mostly stand for a missing value: 'NA'. " in caplog.text
    (tmp_path / "gap.csv").write_text('text,label\na,x\n"",y\nb,x\nc,y\n')
    with pytest.raises(DataError, match=r"1 of 2 examples .* have no 'text'"):
        load(tmp_path / "gap.csv")


def test_labels_that_mean_missing_are_left_out_by_what_the_log_proposes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"t{k},{label}" for k, label in enumerate(["NA", "null", "yes"] * 4)]
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    load(tmp_path / "x.csv")
    found = re.search('data.where = "(.*)"', caplog.text)
    assert found and {label for _, label in load(tmp_path / "x.csv", where=found[1])} == {"yes"}


def test_labels_that_a_person_reads_as_one_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"t{k},{label}" for k, label in enumerate(["yes", " yes", "Yes", "no"] * 4)]
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    assert len({label for _, label in load(tmp_path / "x.csv")}) == 4
    assert "blanks or in case, and count as different classes: ' yes', 'Yes', 'yes'" in caplog.text


def test_the_label_01_is_not_the_label_1(tmp_path: Path) -> None:
    lines = [f"t{k},{label}" for k, label in enumerate(["01", "1", "10", "001"] * 4)]
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    got = HubTable(str(tmp_path / "x.csv"), test_fraction=0.25).load()
    assert got.classes == ("001", "01", "1", "10")
    numbers = [f"t{k},{label}" for k, label in enumerate(["2", "1", "10"] * 4)]
    (tmp_path / "y.csv").write_text("\n".join(["text,label", *numbers]) + "\n")
    assert HubTable(str(tmp_path / "y.csv"), test_fraction=0.25).load().classes == ("1", "2", "10")


def test_columns_of_numbers(tmp_path: Path) -> None:
    """Of each column the values are numbers only if all are."""
    head = "text,label,whole,gap,half,zip,long,mixed"
    lines = [f"t{k},{k % 2},{k},{'' if k else 7},{k}.5,0123,{10**20},{'x' if k else 1}"
             for k in range(8)]  # fmt: skip
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("\n".join([head, *lines]) + "\n")
    train = HubTable(str(tmp_path)).load().train.columns
    first = train["text"].index("t0")
    row = {name: train[name][first] for name in head.split(",")[2:]}
    assert row == {
        "whole": 0,
        "gap": 7,
        "half": 0.5,
        "zip": "0123",
        "long": str(10**20),
        "mixed": "1",
    }
    assert [value for value in train["gap"] if value is not None] == [7]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label, text\na,0,b\n")
    with pytest.raises(DataError, match="more than one column called 'text'"):
        load(tmp_path / "x.csv")


def test_files_of_one_split_have_the_same_columns_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "train-0.csv").write_text("text,label\na,01\nb,2\n")
    (tmp_path / "train-1.csv").write_text("label;text\n3;c\n01;d\n")
    (tmp_path / "test.csv").write_text("text,label\ne,2\n")
    got = HubTable(str(tmp_path)).load()
    assert rows_of(got.train, got.classes) == {("a", "01"), ("b", "2"), ("c", "3"), ("d", "01")}
    (tmp_path / "train-1.csv").write_text("text,lable\nc,3\n")
    with pytest.raises(DataError, match=r"train-1\.csv has the columns text, lable, and .*train-0"):
        HubTable(str(tmp_path)).load()


def test_a_row_too_long_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label\na,0\nb,c,1\n")
    with pytest.raises(
        DataError, match=r"x\.csv cannot be read: .*Row #3: Expected 2 columns, got 3"
    ):
        load(tmp_path / "x.csv")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_json_with_a_mark(ending: str, encoding: str, tmp_path: Path) -> None:
    rows = [{"text": a, "label": b} for a, b in ROWS]
    text = json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows))
    (tmp_path / f"x.{ending}").write_bytes(text.encode(encoding))
    assert load(tmp_path / f"x.{ending}") == set(ROWS)


def test_what_looks_wrong_with_labels_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"t{k},{k},same" for k in range(40)]
    (tmp_path / "x.csv").write_text("\n".join(["text,label,other", *lines]) + "\n")
    with caplog.at_level(WARNING, "fedpeft"):
        load(tmp_path / "x.csv", label="text")
    assert "the column 'text' has 20 labels in 20 examples" in caplog.text
    caplog.clear()
    with caplog.at_level(WARNING, "fedpeft"):
        load(tmp_path / "x.csv", label="other")
    assert "all examples have one label" in caplog.text


def test_usual_columns_are_found_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("Text,LABEL\na,0\nb,1\nc,0\nd,1\n")
    assert load(tmp_path / "x.csv") == {("a", "0"), ("b", "1"), ("c", "0"), ("d", "1")}


# --- pictures with a table beside


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """An image folder with a metadata file in each split, in which paths are Windows' own."""
    for split, count in (("train", 4), ("test", 2)):
        lines = ["file_name,label,hospital"]
        for k in range(count):
            save_picture(tmp_path / split / "scans" / f"{k}.png", (k, 0, 0))
            lines.append(f"scans\\{k}.png,{'ab'[k % 2]},north")
        (tmp_path / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_metadata_names_pictures(described: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert source(str(described), names("data"))["name"] == "table"
    save_picture(described / "train" / "scans" / "more.png")
    with caplog.at_level(WARNING, "fedpeft"):
        got = HubTable(str(described)).load()
    assert [p.getpixel((0, 0)) for p in got.train.columns["image"]] == [(k, 0, 0) for k in range(4)]
    assert (got.train.columns["label"].tolist(), got.classes) == ([0, 1, 0, 1], ("a", "b"))
    assert len(list(got.test.columns["image"])) == 2
    assert got.train.columns["hospital"] == ["north"] * 4
    assert got.train.columns["folder"] == ["scans"] * 4
    assert "1 picture that no metadata file names, the first train/scans/more.png" in caplog.text


def test_one_metadata_file_for_all_splits(tmp_path: Path) -> None:
    """The folder of a picture says its split, and may be its label."""
    lines = []
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for k in range(2):
                save_picture(tmp_path / split / name / f"{k}.png")
                lines.append({"file_name": f"{split}/{name}/{k}.png", "site": k})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=r"no labels: none of its columns \(site, image, folder\)"):
        HubTable(str(tmp_path)).load()
    got = HubTable(str(tmp_path), label="folder").load()
    assert got.classes == ("cat", "dog") and got.train.columns["site"] == [0, 1, 0, 1]
    assert len(got.train) == 4 == len(got.test)
    alone = HubTable(str(tmp_path / "metadata.jsonl"), label="folder").load()
    assert alone.train.columns["image"][0].size == (6, 4)


def test_metadata_without_file_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("picture,label\na.png,0\n")
    with pytest.raises(DataError, match="a metadata file needs 'file_name'"):
        HubTable(str(tmp_path)).load()


@pytest.mark.parametrize("gap", ["", " "])
def test_a_row_of_metadata_without_a_file_is_one_without_a_picture(
    gap: str, tmp_path: Path
) -> None:
    """It belongs to the split in which its table lies."""
    (tmp_path / "test").mkdir()
    save_picture(tmp_path / "test" / "a.png")
    (tmp_path / "test" / "metadata.csv").write_text(f"file_name,label\na.png,x\n{gap},y\n")
    save_picture(tmp_path / "train" / "b.png")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\nb.png,x\n")
    found = HubTable(str(tmp_path)).load()
    assert (len(found.train), len(found.test)) == (1, 2)
    with pytest.raises(DataError, match=r"^picture number 1 is empty: leave it out"):
        found.test.columns["image"][1]


def test_captions_keep_their_own_name(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    lines = [{"photo_file_name": "a.png", "text": f"caption {k}"} for k in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    got = HubTable(str(tmp_path), label="none", test_fraction=0.5).load()
    assert got.train.columns["image"][0].size == (6, 4)


def test_pictures_of_a_table_have_a_window(tmp_path: Path) -> None:
    for k in range(4):
        picture = np.array([[0, 1000 * k, 4000]], dtype=np.uint16)
        Image.fromarray(picture).save(tmp_path / f"{k}.png")
    rows = [{"image": f"{k}.png", "label": k % 2} for k in range(4)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows[:1])))
    usual = HubTable(str(tmp_path)).load().train.columns["image"]
    assert np.asarray(usual[1]).tolist() == [[0, 62, 249]]  # 1000 and 4000 of 4095
    told = HubTable(str(tmp_path), window=(0.0, 2000.0)).load().train.columns["image"]
    assert np.asarray(told[1]).tolist() == [[0, 128, 255]]


def test_all_pictures_of_a_table_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    save_picture(tmp_path / "good.png")
    rows = [{"image": n, "label": 0} for n in ("good.png", "gone.png", "lost.png", "good.png")]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text(json.dumps({"image": "away.png", "label": 0}))
    got = HubTable(str(tmp_path)).load()
    with pytest.raises(DataError) as caught:
        list(got.train.columns["image"])
    text = str(caught.value)
    assert text.startswith("3 of 5 pictures cannot be read:")
    assert all(name in text for name in ("gone.png", "lost.png", "away.png"))
    assert text.endswith("Mend them or leave them out")


# --- text files that people write

MARKED = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", MARKED)
def test_text_in_any_form(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes("name = 'é'\r\nx\n".encode(encoding))
    assert read_text(file) == "name = 'é'\nx\n"


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xe9t\xe9")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "x")
    assert encoding_of(b"") is None and encoding_of(b"a") is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_plans_trust_files_and_lists_in_any_form(encoding: str, tmp_path: Path) -> None:
    plan, trust, lists = (tmp_path / name for name in ("plan.toml", "trusted", "who.json"))
    plan.write_bytes("name = 'é'\r\nrounds = 7\r\n".encode(encoding))
    assert (read_plan(plan).name, read_plan(plan).rounds) == ("é", 7)
    shown = fedpeft("show", plan)
    assert shown.exit_code == 0 and "rounds = 7" in shown.stdout
    key = "ab" * 32
    trust.write_bytes(f"ed25519:{key} hôpital\n".encode(encoding))
    assert list(Trust.read([trust]).keys.values()) == ["hôpital"]
    lists.write_bytes(json.dumps({"a": [0, 1]}).encode(encoding))
    table = Table({"label": [0, 1]})
    assert list(Lists(file=str(lists)).split(table, None).parts) == ["a"]  # type: ignore[arg-type]


def test_a_place_stands_for_a_name_in_a_table_too(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for label in ("a", "b"):
        save_picture(folder / label / "1.png")
    plan = read_plan({"data": {"name": str(folder), "skip_unreadable": True}})
    assert (
        plan.data
        == read_plan(
            {"data": {"name": "images", "path": str(folder), "skip_unreadable": True}}
        ).data
    )
    with pytest.raises(PlanError, match=r"no data called 'picture'.* no file or folder"):
        read_plan({"data": {"name": "picture", "skip_unreadable": True}})
