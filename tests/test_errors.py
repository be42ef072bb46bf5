"""How errors and counts are worded."""

import pytest

from fedpeft.errors import say_count


@pytest.mark.parametrize(
    ("count", "things", "said"),
    [
        (3, "pictures that are empty", "3 pictures that are empty"),
        (1, "pictures that are empty", "1 picture that is empty"),
        (0, "examples", "0 examples"),
        (1, "held-out examples", "1 held-out example"),
        (1, "owners have no held-out examples", "1 owner has no held-out examples"),
        (1, "rows that show two pictures", "1 row that shows two pictures"),
        (1, "classes", "1 class"),
        (1, "boxes", "1 box"),
        (1, "copies of one picture", "1 copy of one picture"),
        (1, "series", "1 series"),
        (12_345, "rows", "12,345 rows"),
    ],
)
def test_one_thing_is_told_in_the_singular(count: int, things: str, said: str) -> None:
    assert say_count(count, things) == said
