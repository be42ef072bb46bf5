"""Entities in a row of tags, as the CoNLL shared tasks count them (Tjong Kim Sang and De Meulder,
2003, arXiv:cs/0306050)."""

from collections.abc import Sequence

OUTSIDE = "O"
PREFIXES = ("B", "I", "E", "S")
"""The first, a further, the last and the only word of an entity; IOB2 has the first two."""

Entity = tuple[str, int, int]
"""Its kind, its first word and its last word."""


def has_entities(labels: Sequence[str]) -> bool:
    """Whether the tags tell entities, such as B-PER; those of parts of speech do not."""
    return any(label[:1] in PREFIXES and label[1:2] == "-" for label in labels)


def find_entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of one text.

    An entity begins at B and S, where the kind changes, and at any tag after O, E or S. So I-PER
    after O begins one, as in the scripts of the shared task and in `seqeval`.
    """
    found: set[Entity] = set()
    before, kind_before, first = OUTSIDE, "", 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = _parts(tag)
        begins = prefix in ("B", "S") or before in (OUTSIDE, "E", "S") or kind != kind_before
        if before != OUTSIDE and (begins or prefix == OUTSIDE):
            found.add((kind_before, first, place - 1))
        if begins:
            first = place
        before, kind_before = prefix, kind
    return found


def _parts(tag: str) -> tuple[str, str]:
    """Prefix and kind; a tag without a prefix is of its own kind."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, kind = tag.partition("-")
    return (prefix, kind) if dash and prefix in PREFIXES else ("I", tag)
