"""Draw the tables of pages about claims from docs/results/*.csv, in place, between their marks.

    python -m tools.claims                  # every page
    python -m tools.claims fedpeft          # docs/results/fedpeft.md
    python -m tools.claims --check          # exit 1 if a table on a page is not that of the results

A difference is taken within each seed, whose runs share partition, cohorts and starting head; what
is printed is its mean over the seeds and half of the 95 % interval (Student's t).
"""

import sys
from collections.abc import Callable, Mapping

from tools.claims import (
    bytes_claims,
    generation_claims,
    merge_claims,
    neighbour_claims,
    one_shot_claims,
    peft_claims,
)
from tools.claims.rows import RESULTS

PAGES = {
    "bytes": bytes_claims.TABLES,
    "fedpeft": peft_claims.TABLES,
    "merges": merge_claims.TABLES,
    "neighbours": neighbour_claims.TABLES,
    "one-shot": one_shot_claims.TABLES | generation_claims.TABLES,
}


def redrawn(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The page with what stands between its marks drawn anew."""
    for name, draw in tables.items():
        begin, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise SystemExit(f"the page lacks its marks {begin} … {end}")
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{draw()}\n{end}{rest.partition(end)[2]}"
    return page


def main(arguments: list[str]) -> None:
    names = [one for one in arguments if one != "--check"] or list(PAGES)
    stale = []
    for name in names:
        if name not in PAGES:
            raise SystemExit(f"no page {name!r}: there are {', '.join(PAGES)}")
        file = RESULTS / f"{name}.md"
        before = file.read_text()
        after = redrawn(before, PAGES[name])
        if after != before:
            stale.append(name)
            if "--check" not in arguments:
                file.write_text(after)
    if stale and "--check" in arguments:
        raise SystemExit(f"not what the results say: {', '.join(stale)}")


if __name__ == "__main__":
    main(sys.argv[1:])
