"""Names of clients that people can tell apart: no two that look alike differ.

The rules are those that Unicode calls highly restrictive (UTS 39, 5.2), with names of characters
instead of its tables: letters of one script, or Latin with those of Chinese, Japanese or Korean.
Two names may still look alike where each is wholly of one script, as Latin "a" and Cyrillic "а".
"""

import unicodedata

LONGEST = 100
MARKS = " -_."
HAN = frozenset({"CJK", "IDEOGRAPHIC"})
TOGETHER = (
    frozenset({"LATIN", *HAN, "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}),
    frozenset({"LATIN", *HAN, "BOPOMOFO"}),
    frozenset({"LATIN", *HAN, "HANGUL"}),
)
"""By the first word of a character's name, the scripts that are written together."""
PLAIN_LATIN = ((0x0041, 0x024F), (0x1E00, 0x1EFF))
"""Where languages' own letters are; those of phonetics look like them."""
ALLOWED = (
    "a name has 1 to 100 characters: letters of one script, or Latin ones beside Chinese, Japanese "
    "or Korean, digits 0 to 9, single spaces, and - _ . but no dot first, and no dot or space last"
)


def find_problem(name: str) -> str:
    """What is wrong with the name of a client; empty where nothing is."""
    return _wrong_form(name) or _wrong_character(name) or _mixed_scripts(name)


def _wrong_form(name: str) -> str:
    if not 0 < len(name) <= LONGEST:
        return f"it has {len(name)} characters"
    if name[0] in ". " or name[-1] in ". ":
        at = 0 if name[0] in ". " else len(name) - 1
        return f"it {'ends' if at else 'begins'} with {_describe_character(name[at])}"
    if "  " in name:
        return "it has two spaces side by side"
    if any("\ud800" <= c <= "\udfff" for c in name):
        return "it is no text: it has half of a character"
    if unicodedata.normalize("NFC", name) != name:
        return "its letters are not composed as usual (NFC), so that it looks like another name"
    return ""


def _wrong_character(name: str) -> str:
    for c in name:
        if c in MARKS or (c.isascii() and c.isalnum()):
            continue
        if not _is_letter(c):
            return f"it has {_describe_character(c)}"
    return ""


def _is_letter(c: str) -> bool:
    """An ordinary letter, or a sign that belongs to the letters of its script."""
    kind, script = unicodedata.category(c), _script(c)
    if kind[0] not in "LM" or script in ("COMBINING", "MODIFIER", "VARIATION", ""):
        return False
    if unicodedata.normalize("NFKC", c) != c:  # another form of another letter, as ﬁ and Ａ
        return False
    return script != "LATIN" or any(low <= ord(c) <= high for low, high in PLAIN_LATIN)


def _script(c: str) -> str:
    return unicodedata.name(c, "").partition(" ")[0]


def _mixed_scripts(name: str) -> str:
    """Names whose letters are of scripts that are not written together."""
    # Reversed, so that the first letter of each script is the one that stays.
    first = {_script(c): c for c in reversed(name) if not (c in MARKS or c.isdigit())}
    if len(first) <= 1 or any(first.keys() <= together for together in TOGETHER):
        return ""
    (one, a), (other, b), *_ = sorted(first.items(), key=lambda pair: name.index(pair[1]))
    seen = f"{_describe_character(a)} and {_describe_character(b)}"
    return f"it mixes {one.title()} letters with {other.title()}: {seen}"


def _describe_character(c: str) -> str:
    """A character by its number and its name, since it may not be seen."""
    return f"U+{ord(c):04X} {unicodedata.name(c, 'without a name')}"
