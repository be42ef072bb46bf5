"""Time series as windows: what a window is, and what is left out of them."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpeft import DataError
from fedpeft.core.numbers import read_numbers
from fedpeft.data.series import Series
from fedpeft.data.time_steps import find_gaps, read_times


def write_series(file: Path, columns: dict[str, Sequence[Any]], start: str = "2014-01-01") -> Path:
    """A CSV file of hourly values."""
    first = datetime.fromisoformat(start)
    rows = zip(*columns.values(), strict=True)
    lines = [
        f"{first + timedelta(hours=k)},{','.join(map(str, row))}" for k, row in enumerate(rows)
    ]
    file.write_text("\n".join([",".join(["time", *columns]), *lines]) + "\n")
    return file


def loaded(file: Path, **settings: Any) -> Any:
    return Series(
        str(file), **{"context": 2, "horizon": 1, "test_fraction": 0.0, **settings}
    ).load()


def test_a_series_is_standardised_by_its_training_part(tmp_path: Path) -> None:
    """(1, 2, 3, 4): mean 2.5, std √1.25; the fifth value is held out and changes neither."""
    file = write_series(tmp_path / "a.csv", {"x": [1, 2, 3, 4, 100]})
    found = loaded(file, test_fraction=0.2)
    z = torch.tensor([-1.341641, -0.447214, 0.447214, 1.341641])
    torch.testing.assert_close(found.train.columns["past"], torch.stack([z[:2], z[1:3]]))
    torch.testing.assert_close(found.train.columns["future"], z[2:, None])
    torch.testing.assert_close(found.test.columns["past"], z[None, 2:])
    assert found.test.columns["future"].item() == pytest.approx(97.5 / 1.25**0.5)
    assert found.train.columns["client"] == ["x", "x"]


def test_a_future_is_trained_on_or_held_out_and_never_both(tmp_path: Path) -> None:
    file = write_series(tmp_path / "a.csv", {"x": range(10)})
    found = loaded(file, horizon=2, test_fraction=0.4)
    back = torch.arange(6.0)
    mean, std = back.mean(), back.std(correction=0)
    trained, held = (
        (side.columns["future"] * std + mean).round().tolist() for side in (found.train, found.test)
    )
    assert trained == [[2, 3], [3, 4], [4, 5]]
    assert held == [[6, 7], [7, 8], [8, 9]]
    assert found.left_out == {"windows whose future is trained on and held out": 1}


@pytest.mark.parametrize("word", ["", "NA", "nan", "None", "-", "inf"])
def test_no_window_has_a_missing_value(tmp_path: Path, word: str) -> None:
    """Of 8 windows three have the fifth value in them."""
    file = write_series(tmp_path / "a.csv", {"x": [0, 1, 2, 3, word, 5, 6, 7, 8, 9]})
    found = loaded(file)
    assert len(found.train) == 5
    assert found.left_out == {"missing values": 1, "windows with a missing value": 3}
    assert found.train.columns["past"].isfinite().all()


def test_no_window_goes_over_a_gap_and_rows_are_sorted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Hours 0 to 3 and 6 to 9 in turn have two windows each; a row that is there twice and one
    without a time count once and never."""
    hours = [9, 8, 7, 6, 0, 1, 2, 3, 3]
    lines = [f"2014-01-01 {h:02}:00,{h}" for h in hours] + [",5"]
    (tmp_path / "a.csv").write_text("\ufefftime,x\n" + "\n".join(lines) + "\n", "utf-8")
    found = loaded(tmp_path / "a.csv")
    std = torch.tensor([0.0, 1, 2, 3, 6, 7, 8, 9]).std(correction=0)
    rise = (found.train.columns["future"][:, 0] - found.train.columns["past"][:, 0]) * std
    torch.testing.assert_close(rise, torch.full((4,), 2.0))
    assert found.left_out == {
        "rows without a time": 1,
        "values of a time that was there before": 1,
        "windows over a gap in time": 2,
    }
    assert "2 windows over a gap in time" in caplog.text


def test_months_and_the_hour_of_daylight_saving_are_no_gaps() -> None:
    months = read_times([f"2014-{m:02}-01" for m in range(1, 13)], "t")
    assert not find_gaps(months.at).any()
    assert months.months[1] == "2014-02"
    assert find_gaps(torch.tensor([0.0, 1, 2, 4, 5])).tolist() == [False, False, False, True, False]
    assert not find_gaps(torch.tensor([3.0])).any()


def test_clients_are_columns_or_what_a_column_names_or_months(tmp_path: Path) -> None:
    owners = ["a"] * 6 + ["b"] * 6
    columns = {"x": range(12), "y": range(12, 24), "who": owners}
    file = write_series(tmp_path / "a.csv", columns)
    assert set(loaded(file).train.columns["client"]) == {"x", "y"}
    named = loaded(file, client="who").train.columns
    assert set(zip(named["client"], named["channel"], strict=True)) == {
        (c, x) for c in "ab" for x in "xy"
    }
    late = write_series(tmp_path / "b.csv", {"x": range(12)}, "2014-01-31 18:00")
    assert set(loaded(late, period="month").train.columns["client"]) == {"x-2014-01", "x-2014-02"}


def test_a_clients_scale_does_not_depend_on_another(tmp_path: Path) -> None:
    both = write_series(tmp_path / "a.csv", {"x": [1, 5, 2, 4, 3], "y": [9, 8, 9, 9, 9]})
    alone = write_series(tmp_path / "b.csv", {"x": [1, 5, 2, 4, 3]})
    rows = [k for k, c in enumerate(loaded(both).train.columns["client"]) if c == "x"]
    one, other = loaded(both).train.columns["past"][rows], loaded(alone).train.columns["past"]
    assert torch.equal(one, other)


def test_a_short_series_and_a_constant_one_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_series(tmp_path / "a.csv", {"x": [0.1] * 5, "y": [1, 2, "NA", "NA", "NA"]})
    found = loaded(file)
    assert set(found.train.columns["client"]) == {"x"}
    assert torch.equal(found.train.columns["past"], torch.zeros(3, 2))
    assert found.left_out["series without a window to train on"] == 1
    assert "'x' of 'x' is constant" in caplog.text and "first y of y" in caplog.text


def test_windows_of_one_series_are_views_of_its_values(tmp_path: Path) -> None:
    file = write_series(tmp_path / "a.csv", {"x": range(50)})
    past = loaded(file, context=20, horizon=5).train.columns["past"]
    assert past.shape == (26, 20) and past.untyped_storage().nbytes() == 50 * 4
    assert len(loaded(file, context=20, horizon=5, stride=10).train) == 3


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    hours = [datetime(2014, 1, 1) + timedelta(hours=k) for k in range(6)]
    pq.write_table(pa.table({"time": hours, "x": [1.0, 2, None, 4, 5, 6]}), tmp_path / "a.parquet")
    csv = write_series(tmp_path / "a.csv", {"x": [1, 2, "NA", 4, 5, 6]})
    one, other = loaded(tmp_path / "a.parquet"), loaded(csv)
    assert torch.equal(one.train.columns["past"], other.train.columns["past"])
    assert one.left_out == other.left_out


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("day,x\n1,2\n", {}, "has no column of times"),
        ("time,x\nMonday,2\n", {}, "row 1, which is no time"),
        ("time,x\n1,a\n", {"columns": ("x",)}, "'a' in row 1, which is no number"),
        ("time,x\n1,a\n", {}, "none of the columns x holds numbers"),
        ("time,x\n1,2\n", {"columns": ("z",)}, "data.columns"),
        ("time,x\n1,2\n", {"client": "z"}, "data.client"),
        ("time,x,who\n1,2,\n2,3,a\n", {"client": "who"}, "1 of 2 rows have no client"),
        ("time,x\n1,2\n", {"period": "month"}, "needs dates"),
        ("time,x\n1,2\n2,3\n", {}, "lower data.context or data.horizon"),
        ("time,x\n1,2\n2,NA\n3,4\n4,5\n", {}, "1 missing value,"),
    ],
)
def test_what_is_wrong_with_series_is_told(
    tmp_path: Path, text: str, settings: dict[str, Any], words: str
) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        loaded(tmp_path / "a.csv", **settings)


@pytest.mark.parametrize("wrong", [{"period": "week"}, {"stride": 0}, {"context": 0}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"period is|at least 1"):
        Series("a.csv", **wrong)


def test_numbers_and_their_absence() -> None:
    read = read_numbers([1, "2.5", None, " NA "], "x", "")
    assert read[:2].tolist() == [1, 2.5] and read[2:].isnan().all()
