"""What text-to-image models draw, side by side: a picture for each caption and model, as a page
shows them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedpeft.evaluation.statistics import estimate_or_none
from fedpeft.report.groups import Group, Section
from fedpeft.report.reading import KeptRun
from fedpeft.report.schema import KeptPictures

ROWS, COLUMNS = 6, 8
"""How many captions and how many groups a gallery shows."""


@dataclass(frozen=True)
class GalleryColumn:
    """Pictures of one origin, a WebP as base64 for each caption.

    Attributes:
      about: a word on the run, or a CLIP's score.
      group: whose run drew them; empty for what is held out and for the base model.
    """

    name: str
    about: Sequence[str]
    pictures: Sequence[str]
    group: str = ""


@dataclass(frozen=True)
class Gallery:
    """Columns of pictures of the same captions."""

    told: str
    captions: Sequence[str]
    columns: Sequence[GalleryColumn]


def galleries(section: Section) -> list[Gallery]:
    """One for all groups whose models drew the same captions in the same way, each by the run of
    its first seed."""
    alike: dict[str, list[tuple[Group, KeptRun, KeptPictures]]] = {}
    for group in section.groups:
        first = next(
            ((cell, drawn) for cell in group.cells if (drawn := cell.pictures) and drawn.pictures),
            None,
        )
        if first:
            alike.setdefault(_conditions(*first), []).append((group, *first))
    return [_gallery(members) for members in alike.values()]


def _conditions(cell: KeptRun, drawn: KeptPictures) -> str:
    """Equal where the base model, the captions and the noise are the same; each seed has a random
    base of its own."""
    how = [drawn.steps, drawn.guidance, drawn.seed, *(one.caption for one in drawn.pictures)]
    method = cell.plan.get("method")
    base = cell.seed if isinstance(method, dict) and method.get("name") == "scratch" else None
    return json.dumps([cell.plan.get("task"), base, *how], sort_keys=True, default=str)


def _gallery(members: Sequence[tuple[Group, KeptRun, KeptPictures]]) -> Gallery:
    _, _, first = members[0]
    every = len(first.pictures)
    rows = [k * every // min(ROWS, every) for k in range(min(ROWS, every))]
    judge = next((drawn.clip.model for _, _, drawn in members if drawn.clip), "")
    shown = members[:COLUMNS]
    columns = [
        GalleryColumn(
            "held out", _score(members, judge, "truth"), [first.pictures[k].truth for k in rows]
        ),
        GalleryColumn(
            "before",
            ["base model", *_score(members, judge, "before")],
            [first.pictures[k].before for k in rows],
        ),
        *(
            GalleryColumn(
                group.label,
                [
                    f"seed {cell.seed}, round {drawn.round}",
                    *_score([(group, cell, drawn)], judge, "after"),
                ],
                [drawn.pictures[k].after for k in rows],
                group.label,
            )
            for group, cell, drawn in shown
        ),
    ]
    told = " ".join(_describe_pictures(first, len(rows), len(members), judge))
    return Gallery(told, [first.pictures[k].caption for k in rows], columns)


def _score(
    members: Sequence[tuple[Group, KeptRun, KeptPictures]], judge: str, column: str
) -> list[str]:
    """The CLIP score of a column, by the first that has one of this CLIP."""
    scores = next(
        (getattr(d.clip, column) for _, _, d in members if d.clip and d.clip.model == judge), ()
    )
    found = estimate_or_none(scores)
    if found is None:
        return []
    return [f"CLIP {found.text('{:.3f}'.format, '{:.3f}'.format)}"]


def _describe_pictures(first: KeptPictures, rows: int, groups: int, judge: str) -> Iterator[str]:
    yield (
        "For each caption the held-out picture, what the untuned base model draws, "
        "and what each group's model draws"
    )
    yield f"from the same noise: {first.steps} steps of DDIM, guidance {first.guidance:g}."
    if rows < len(first.pictures):
        yield f"Shown are {rows} of {len(first.pictures)} captions."
    if groups > COLUMNS:
        yield f"Shown are the first {COLUMNS} of {groups} groups."
    if judge:
        captions = f"all {len(first.pictures)} captions"
        yield f"CLIP: 2.5·max(cos, 0) of picture and caption by {judge}, mean over {captions}"
        yield "± half its interval."
