"""The tables of claims: what stands between marks, and differences that were worked out by hand."""

import pytest

from tools.claims.__main__ import main, redrawn
from tools.claims.rows import Row, against, difference, lines, signed, spread

PAGE = "a\n<!-- table: one -->\nold\n<!-- end: one -->\nb\n"
ONE = Row("one", {1: 50.0, 2: 60.0, 3: 70.0}, 1.5, 1234)
TWO = Row("two", {2: 59.0, 3: 67.0, 4: 99.0}, 1024.0, 2)


def test_only_what_stands_between_the_marks_is_drawn_anew() -> None:
    drawn = redrawn(PAGE, {"one": lambda: "new"})
    assert drawn == PAGE.replace("old", "new")
    assert redrawn(drawn, {"one": lambda: "new"}) == drawn


@pytest.mark.parametrize("page", [PAGE.replace("end: one", "end: two"), PAGE + PAGE, ""])
def test_a_page_without_its_marks_once_is_refused(page: str) -> None:
    with pytest.raises(SystemExit, match="lacks its marks <!-- table: one -->"):
        redrawn(page, {"one": lambda: "new"})


def test_a_page_that_is_not_there_is_named() -> None:
    with pytest.raises(SystemExit, match="no page 'byte': there are bytes, fedpeft"):
        main(["--check", "byte"])


def test_a_difference_is_taken_in_the_seeds_that_both_have() -> None:
    assert difference(ONE, TWO) == {2: 1.0, 3: 3.0}


def test_an_interval_is_students() -> None:
    """The deviation of 50, 60 and 70 is 10, and t of two degrees of freedom is 4.303: 4.303 * 10 /
    sqrt(3) = 24.8. Two seeds are no interval: their range is shown."""
    assert spread(ONE.values) == "60.0 ± 24.8"
    assert signed(difference(ONE, TWO)) == "+2.0 (1.0 to 3.0)"
    assert signed(difference(TWO, ONE)).startswith("-2.0")


def test_rows_stand_beside_their_reference() -> None:
    assert lines(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    head, _, own, other = against([ONE, TWO], ONE).splitlines()
    assert "against one" in head
    assert own == "| one | 3 | 60.0 ± 24.8 |  | 1,234 | 1.50 |"
    assert "| -2.0 (-3.0 to -1.0) | 2 | 1,024.00 |" in other
