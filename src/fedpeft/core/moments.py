"""Moments of a clip that stand for all of it."""


def choose_frames(total: int, wanted: int) -> list[int]:
    """The middle frame of each of `wanted` equal parts of a clip, from 0. Of a clip with fewer
    frames some are taken several times."""
    return [(2 * k + 1) * total // (2 * wanted) for k in range(wanted)]
