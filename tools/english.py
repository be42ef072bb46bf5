"""Check that pages, help texts, docstrings and error messages are plain English.

    python -m tools.english             # what passes the limits; `make check` fails where it is new
    python -m tools.english --all       # every breach, those that the list allows too
    python -m tools.english --shrink    # shorten the list of what is allowed

There are three rules:

    long       a sentence has more than 40 words
    fragment   a docstring or a help text begins with words that lead to no subject and no verb
    word       a word of our own, where `tools/english_words.txt` knows the field's

Code, links' targets and quoted names of Markdown do not count. Pages of decisions and the changelog
are history and stay as they are, and docstrings make the reference of plans. The list
`tools/english_allowed.txt` has lines `path rule count`. It may only shrink: a line fails whose
breaches have become fewer.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.prose import Text, read_page, read_python

ROOT = Path(__file__).parents[1]
ALLOWED = ROOT / "tools" / "english_allowed.txt"
WORDS = ROOT / "tools" / "english_words.txt"
PAGES = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "docs/**/*.md")
HISTORY = ("docs/decisions", "docs/reference/plan.md", "docs/models.md")
MODULES = "src/fedpeft/**/*.py"
LONGEST = 40
RULES = ("long", "fragment", "word")

# An abbreviation ends no sentence, and neither does a number such as "0.5".
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|et al|cf|vs|etc|Fig|Eq|Sec|No)\.")
END = re.compile(r"(?<=[.!?])[)\"']?\s+(?=[A-Z0-9\"'(`\[*])")
# "Of each search" and "As in the paper" have no subject; "As many as ..." is one.
FRAGMENT = re.compile(r"(Of|Whose|Who|Told|Else|Because|Which is)\b|As (?!(many|much|few)\b)")


class Breach(NamedTuple):
    """A sentence that breaks a rule, where it stands, and what to do."""

    path: str
    line: int
    rule: str
    remedy: str
    sentence: str


def split_sentences(text: str) -> list[str]:
    """The sentences of one paragraph, without line breaks."""
    text = ABBREVIATION.sub(lambda found: found[0].replace(".", "․"), " ".join(text.split()))
    return [one.replace("․", ".") for one in END.split(text) if one.strip()]


def count_words(sentence: str) -> int:
    """How many words a sentence has; signs and numbers alone are none."""
    return sum(bool(re.search(r"[^\W\d_]", word)) for word in sentence.split())


def read_words(text: str) -> dict[str, str]:
    """Expressions of words that are banned, with what to write instead.

    Raises:
      ValueError: a line is not of the form `expression = advice`.
    """
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        expression, sign, advice = line.partition(" = ")
        if not sign or not advice.strip():
            raise ValueError(f"{line!r} is no banned word: a line is `expression = advice`")
        found[expression.strip()] = advice.strip()
    return found


def check_text(path: str, text: Text, words: Mapping[str, str]) -> Iterator[Breach]:
    """What one piece of prose breaks."""
    for number, sentence in enumerate(split_sentences(text.words)):
        length = count_words(sentence)
        if length > LONGEST and not text.is_table:
            remedy = f"it has {length} words, and {LONGEST} are the most: make two of it"
            yield Breach(path, text.line, "long", remedy, sentence)
        if number == 0 and text.is_summary and FRAGMENT.match(sentence):
            remedy = "it begins without a subject: say what it is or does"
            yield Breach(path, text.line, "fragment", remedy, sentence)
        for expression, advice in words.items():
            for found in re.finditer(rf"\b(?:{expression})\b", sentence, re.IGNORECASE):
                yield Breach(path, text.line, "word", f"{found[0]!r}: {advice}", sentence)


def find_breaches(root: Path, words: Mapping[str, str]) -> list[Breach]:
    """Every breach below a repository's root, in the order of files and lines."""
    files = {path for pattern in (*PAGES, MODULES) for path in root.glob(pattern)}
    found: list[Breach] = []
    for path in sorted(files):
        name = path.relative_to(root).as_posix()
        if name.startswith(HISTORY) or "assets" in path.parts:
            continue
        read = read_python if path.suffix == ".py" else read_page
        for text in read(path.read_text(encoding="utf-8")):
            found += check_text(name, text, words)
    return found


# --- what is allowed ---


def count_breaches(breaches: Sequence[Breach]) -> dict[tuple[str, str], int]:
    """How often each file breaks each rule."""
    return dict(Counter((one.path, one.rule) for one in breaches))


def read_allowed(text: str) -> dict[tuple[str, str], int]:
    """The counts that the list of allowed breaches gives.

    Raises:
      ValueError: a line is not of the form `path rule count`.
    """
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            words = line.split()
            if len(words) != 3 or words[1] not in RULES or not words[2].isdecimal():
                raise ValueError(f"{line!r} allows nothing: a line is `path rule 3`")
            found[words[0], words[1]] = int(words[2])
    return found


def find_problems(
    breaches: Sequence[Breach], allowed: Mapping[tuple[str, str], int]
) -> Iterator[str]:
    """In words: files with more breaches than the list allows, and lines that are too high."""
    counts = count_breaches(breaches)
    for key, count in counts.items():
        if count > allowed.get(key, 0):
            path, rule = key
            yield f"{path}: {count} times {rule!r}, and {allowed.get(key, 0)} are allowed:"
            yield from (show_breach(one) for one in breaches if (one.path, one.rule) == key)
    for (path, rule), listed in allowed.items():
        count = counts.get((path, rule), 0)
        if count < listed:
            yield (
                f"{path}: {count} times {rule!r}, and the list still allows {listed}: lower it, "
                "e.g. by --shrink"
            )


def show_breach(one: Breach) -> str:
    """One breach on one line, as editors read it."""
    return f"  {one.path}:{one.line}: {one.rule}: {one.remedy}: {one.sentence}"


def shrink(text: str, breaches: Sequence[Breach]) -> str:
    """The list with the counts of now, where these are lower; nothing is added to it."""
    counts = count_breaches(breaches)
    kept = []
    for line in text.splitlines(keepends=True):
        for key, listed in read_allowed(line).items():
            count = min(listed, counts.get(key, 0))
            line = f"{key[0]} {key[1]} {count}\n" if count else ""
        kept.append(line)
    return "".join(kept)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check that all prose is plain English.")
    parser.add_argument("--root", type=Path, default=ROOT, help="The repository.")
    parser.add_argument("--allowed", type=Path, default=ALLOWED, help="The list of breaches.")
    parser.add_argument("--all", action="store_true", help="Show what the list allows, too.")
    parser.add_argument("--shrink", action="store_true", help="Shorten the list.")
    chosen = parser.parse_args(words)
    breaches = find_breaches(chosen.root, read_words(WORDS.read_text(encoding="utf-8")))
    text = chosen.allowed.read_text(encoding="utf-8") if chosen.allowed.exists() else ""
    if chosen.shrink:
        text = shrink(text, breaches)
        chosen.allowed.write_text(text, encoding="utf-8")
    if chosen.all:
        print("\n".join(map(show_breach, breaches)))
    allowed = read_allowed(text)
    problems = list(find_problems(breaches, allowed))
    print("\n".join([*problems, f"{sum(allowed.values())} breaches of English are allowed"]))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
