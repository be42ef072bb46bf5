"""Tables that cannot be read: what is wrong is named."""

from pathlib import Path

import pytest
from example_files import ROWS, save_picture, write_csv, write_json

from fedpeft import DataError, PlanError, read_plan
from fedpeft.data.table import HubTable

BAD: dict[str, tuple[str, bytes, str]] = {
    "no parquet": ("x.parquet", b"nonsense", r"x\.parquet cannot be read: .*not a parquet file"),
    "truncated": ("x.jsonl", b'{"text": "a", "label"', r"x\.jsonl cannot be read"),
    "empty": ("x.csv", b"", r"x\.csv is empty"),
    "header alone": ("x.csv", b"text,label\n", r"x\.csv"),
    "other": ("x.docx", b"PK", r"x\.docx is no table: its name must end in \.parquet"),
    "workbook": ("x.ods", b"PK", r"x\.ods is a workbook of a kind that is not read: save it as"),
    "no label": (
        "x.csv",
        b"text,remark\na,b\n",
        r"has no labels: none of its columns \(text, remark\) is called label",
    ),
    "no input": (
        "x.csv",
        b"words,label\na,b\n",
        r"set data\.image or data\.text to one of the columns words, label",
    ),
    "gap": (
        "x.csv",
        b"text,label\na,0\nb,\n",
        r"1 of 2 examples of .* have no label in column 'label'",
    ),
    "all gaps": ("x.csv", b"text,label\na,\nb,\n", r"all of 2 examples of .* have no label"),
    "measure": ("x.csv", b"text,label\na,0.5\nb,1.5\n", r"holds 0\.5, which is no class"),
    "no text": (
        "x.csv",
        b"text,label\na,0\n,1\na,1\na,0\n",
        r"have no 'text': leave them out with data\.where",
    ),
    "lists": ("x.jsonl", b'{"text": "a", "label": [1]}\n', r"has no labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_named_with_its_reason(case: str, tmp_path: Path) -> None:
    name, content, match = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match):
        HubTable(str(tmp_path / name), test_fraction=0.5).load()


def test_bad_folders_and_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures in folders, one a class, and no table"):
        HubTable(str(tmp_path)).load()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "x.png").touch()
    with pytest.raises(DataError, match=r"1 pictures and no folders: put those of each class"):
        HubTable(str(tmp_path / "flat")).load()
    write_csv(tmp_path / "train.csv", ROWS)
    with pytest.raises(
        DataError, match=r"data\.label: no column called 'lable'\. Did you mean 'label'"
    ):
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


def test_a_column_of_several_kinds_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores = [0.5, "high", 1.0, 0.25]
    rows = [{"text": "a", "label": "xy"[k % 2], "score": score} for k, score in enumerate(scores)]
    write_json(tmp_path / "x.jsonl", rows)
    table = HubTable(str(tmp_path / "x.jsonl"), test_fraction=0.5).load()
    assert "score" not in table.train.columns
    [said] = caplog.messages
    assert "the column 'score' is not read: its values are of several kinds" in said
