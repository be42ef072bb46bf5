"""How far a text that was told is from the true one."""

from collections.abc import Sequence


def count_errors(told: Sequence[str], true: Sequence[str]) -> int:
    """The least number of words, or characters, that must be put in, taken out or replaced to make
    one sequence of the other (Levenshtein, 1966), by the rows of Wagner and Fischer (1974)."""
    before = list(range(len(true) + 1))
    for row, ours in enumerate(told, start=1):
        now = [row]
        for place, theirs in enumerate(true):
            kept = before[place] + (ours != theirs)
            now.append(min(kept, before[place + 1] + 1, now[place] + 1))
        before = now
    return before[-1]
