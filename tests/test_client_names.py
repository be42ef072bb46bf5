"""Names of clients: what people call themselves passes, what looks like another name does not."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import PLAN, fedpeft

from fedpeft import PlanError, RunError, read_plan
from fedpeft.core.client_names import find_problem
from fedpeft.deploy.terms import check_node_plan
from fedpeft.oneshot.keys import Trust, check_name

GOOD = (
    "a", "hospital-a", "c000", "müller-klinik", "Łódź_2", "Đà Nẵng", "St. Gallen", "0", "x" * 100,
    "病院-a", "東京ラボ 3", "サーバー", "北京医院-b", "병원-a", "больница", "νοσοκομείο",
    "مستشفى", "בית-חולים", "अस्पताल-2",
    "โรงพยาบาล", "佐々木",
)  # fmt: skip
BAD = {
    "": "0 characters",
    "x" * 101: "101 characters",
    ".hidden": r"begins with U\+002E",
    "north.": r"ends with U\+002E FULL STOP",
    "north ": r"ends with U\+0020 SPACE",
    " north": r"begins with U\+0020",
    "a  b": "two spaces",
    "hospit\u0430l": r"mixes Latin letters with Cyrillic: U\+0068 .* and U\+0430 CYRILLIC SMALL",
    "\u0440ay": r"mixes Cyrillic letters with Latin: U\+0440",
    "\u03bfslo": "mixes Greek letters with Latin",
    "病院\u0430": "mixes Cjk letters with Cyrillic",
    "\u3042\uac00": "mixes Hiragana letters with Hangul",
    "nor\u200bth": r"U\+200B ZERO WIDTH SPACE",
    "nor\u200dth": r"U\+200D ZERO WIDTH JOINER",
    "nor\u00adth": r"U\+00AD SOFT HYPHEN",
    "\ufeffnorth": r"U\+FEFF",
    "a\u202eb": r"U\+202E RIGHT-TO-LEFT OVERRIDE",
    "a\u2066b": r"U\+2066",
    "a\nb": r"U\+000A",
    "a\x00b": r"U\+0000",
    "a\x7fb": r"U\+007F",
    "a/b": r"U\+002F SOLIDUS",
    "a\\b": r"U\+005C",
    "a:b": r"U\+003A",
    "a\u2010b": r"U\+2010 HYPHEN",
    "a\u00a0b": r"U\+00A0 NO-BREAK SPACE",
    "mu\u0308ller": "not composed as usual",
    "\u212a": "not composed as usual",
    "x\u0302": r"U\+0302 COMBINING CIRCUMFLEX ACCENT",
    "\uff41bc": r"U\+FF41 FULLWIDTH LATIN SMALL LETTER A",
    "\ufb01rst": r"U\+FB01 LATIN SMALL LIGATURE FI",
    "h\u0251us": r"U\+0251 LATIN SMALL LETTER ALPHA",
    "a\u02bcb": r"U\+02BC MODIFIER LETTER APOSTROPHE",
    "c\u0660": r"U\+0660 ARABIC-INDIC DIGIT ZERO",
    "c\u00b2": r"U\+00B2 SUPERSCRIPT TWO",
    "a\ufe0fb": r"U\+FE0F VARIATION SELECTOR-16",
    "\U0001f600": r"U\+1F600 GRINNING FACE",
    "a\ud800": "half of a character",
    "a\ue000": r"U\+E000 without a name",
}


@pytest.mark.parametrize("name", GOOD)
def test_what_people_call_themselves(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_what_looks_like_another_name(name: str) -> None:
    with pytest.raises(RunError, match=BAD[name]) as caught:
        check_name(name)
    assert str(caught.value).isascii() and "letters of one script" in str(caught.value)


@given(st.text(max_size=12))
def test_any_text_is_a_name_that_is_seen_or_is_refused(name: str) -> None:
    if not find_problem(name):
        assert name.isprintable() and unicodedata.normalize("NFKC", name) == name


def test_names_are_looked_at_wherever_they_enter(tmp_path: Path) -> None:
    odd = "nort\u04bb"
    with pytest.raises(PlanError, match=r"U\+04BB"):
        check_node_plan(read_plan(PLAN, [f'nodes=["{odd}"]', 'classes=["a", "b", "c"]']))
    (tmp_path / "trusted").write_text(f"ed25519:{'0' * 64} {odd}\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"line 1: .*U\+04BB"):
        Trust.read([tmp_path / "trusted"])
    said = fedpeft("keygen", odd, "-o", tmp_path)
    assert said.exit_code == 2 and "U+04BB" in said.output
