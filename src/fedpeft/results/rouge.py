"""ROUGE (Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"): what a told text and
the true one have in common.

Words are runs of letters and digits of any script, in lower case, without stemming; of texts in
English without accents these are the words of the package `rouge-score`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

WORD = re.compile(r"[^\W_]+")


def rouge(told: str, truth: str) -> dict[str, float]:
    """F1 of the words (`rouge1`), of pairs of neighbours (`rouge2`), and of the longest common
    subsequence of words (`rougeL`); 0 where nothing is in common."""
    one, other = (WORD.findall(text.lower()) for text in (told, truth))
    found = {}
    for n in (1, 2):
        both = _grams(one, n) & _grams(other, n)
        found[f"rouge{n}"] = _f1(both.total(), len(one) - n + 1, len(other) - n + 1)
    found["rougeL"] = _f1(_longest_common(one, other), len(one), len(other))
    return found


def mean_rouge(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """The mean of each over texts, each with its truth; empty of none."""
    each = [rouge(told, truth) for told, truth in pairs]
    return {name: fmean(one[name] for one in each) for name in each[0]} if each else {}


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def _f1(both: int, told: int, true: int) -> float:
    """2·both / (told + true), which is the harmonic mean of precision and recall."""
    return 2 * both / (told + true) if both else 0.0


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, row by row of the table of prefixes."""
    before = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for at, there in enumerate(other):
            row.append(before[at] + 1 if word == there else max(before[at + 1], row[at]))
        before = row
    return before[-1]
