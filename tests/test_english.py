"""What the checker of English finds, and what it lets pass."""

from pathlib import Path

import pytest

from tools.english import (
    LONGEST,
    check_text,
    count_words,
    find_breaches,
    find_problems,
    main,
    read_allowed,
    read_words,
    shrink,
    split_sentences,
)
from tools.prose import Text, read_docstring, read_page, read_python

MODULE = '''
"""Of each thing a share."""

def speak(loud):
    """It speaks.

    Attributes:
      loud: whether it shouts.

        loud = anew
    """
    option(help="Whose voice.")
    raise ValueError(f"{loud} came anew, " "and 3.5 is wanted")

def _whisper():
    """Of nobody, anew."""
'''


def rules_of(text: Text) -> list[str]:
    return [one.rule for one in check_text("a.md", text, {"anew": "again"})]


def test_sentences_end_at_full_stops_and_not_at_abbreviations() -> None:
    assert split_sentences("It is 0.5, e.g. here. `A` is\nnext! (arXiv et al. say so.)") == [
        "It is 0.5, e.g. here.",
        "`A` is next!",
        "(arXiv et al. say so.)",
    ]
    assert count_words("a b-c 3 × 4.5, (d)") == 3


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        (Text(1, " ".join(["word"] * LONGEST)), []),
        (Text(1, " ".join(["word"] * (LONGEST + 1))), ["long"]),
        (Text(1, " ".join(["word"] * (LONGEST + 1)), is_table=True), []),
        (Text(1, "Of each client a share.", is_summary=True), ["fragment"]),
        (Text(1, "As many clients as there are.", is_summary=True), []),
        (Text(1, "Of each client a share."), []),
        (Text(1, "Anew, and ANEW; anewer"), ["word", "word"]),
    ],
)
def test_a_rule_finds_what_breaks_it_and_no_more(text: Text, rules: list[str]) -> None:
    assert rules_of(text) == rules


def test_pages_are_read_without_code_headings_and_targets_of_links() -> None:
    page = (
        "# Of a title\n\nOne `two` [three](anew.md)\nfour.\n* item\n| a | b |\n```\nanew\n```\nlast"
    )
    assert [(text.line, text.words.split()) for text in read_page(page)] == [
        (3, ["One", "X", "three", "four."]),
        (5, ["item"]),
        (6, ["a", "b"]),
        (10, ["last"]),
    ]


def test_modules_give_public_docstrings_help_and_errors() -> None:
    found = [(text.words, text.is_summary) for text in read_python(MODULE)]
    assert found == [
        ("Of each thing a share.", True),
        ("It speaks.", True),
        ("whether it shouts.", False),
        ("X came anew, and 3.5 is wanted", False),
        ("Whose voice.", True),
    ]


def test_rows_of_a_docstring_are_apart() -> None:
    text = (
        "It gives\n\nlogits: of a classifier\n  of n rows.\nr2       the share\n\n    a = formula\n"
    )
    assert [one.words for one in read_docstring(text, 1)] == [
        "It gives",
        "of a classifier   of n rows.",
        "the share",
    ]


def test_the_list_may_only_shrink(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("It begins anew. It ends anew.")
    breaches = find_breaches(tmp_path, {"anew": "again"})
    assert [one.rule for one in breaches] == ["word", "word"]
    problems = {n: list(find_problems(breaches, {("README.md", "word"): n})) for n in (1, 2, 3)}
    assert "2 times 'word', and 1 are allowed" in problems[1][0] and len(problems[1]) == 3
    assert problems[2] == []
    assert "still allows 3" in problems[3][0]
    listed = "# why\nREADME.md word 3\ngone.md long 1\n"
    assert shrink(listed, breaches) == "# why\nREADME.md word 2\n"


def test_lines_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="allows nothing"):
        read_allowed("README.md word many")
    with pytest.raises(ValueError, match="no banned word"):
        read_words("anew")


def test_this_repository_keeps_to_its_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().out
