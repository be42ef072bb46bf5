"""The page of all keys is what the code says, and no key is without a meaning."""

from dataclasses import dataclass

from tools.plan_reference import PAGE, Key, keys, page, undescribed


@dataclass
class Sample:
    """What it is.

    Attributes:
      one, two: said of
        both.
      flag: a | b.

    Raises:
      ValueError: never.
    """

    one: int
    two: float = 0.5
    flag: bool = True
    names: tuple[str, ...] = ()


def test_keys_have_their_types_defaults_and_meanings() -> None:
    one, two, flag, names = keys(Sample)
    assert one == Key("one", "`int`", "**must be given**", "said of both.")
    assert (two.default, two.meaning) == ("`0.5`", "said of both.")
    assert flag.row() == "| `flag` | `bool` | `true` | a \\| b. |"
    assert (names.default, names.meaning) == ("none", "")


def test_the_page_is_what_the_code_says() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "run python -m tools.plan_reference"


def test_something_is_said_of_every_key() -> None:
    assert undescribed() == []
