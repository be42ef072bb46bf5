"""What the site's builder does beside what it can do by itself."""

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(```.*?```)", re.DOTALL)
DOCS = Path(__file__).parents[1] / "docs"


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """A page whose links to files outside docs/, which the site does not have, are their paths."""
    folder = (DOCS / page.file.src_uri).parent

    def shown(link: re.Match[str]) -> str:
        mark, words, target = link.groups()
        if target.startswith(("http://", "https://", "mailto:", "#")):
            return link[0]
        path = (folder / target.partition("#")[0]).resolve()
        if path.is_relative_to(DOCS) and not path.is_dir() and path.suffix in (".md", ".png"):
            return link[0]
        inside = path.relative_to(DOCS.parent)
        return link[0] if mark else f"{words} (`{inside}`)"

    # fenced blocks stand at odd places
    pieces = FENCE.split(text)
    return "".join(one if k % 2 else LINK.sub(shown, one) for k, one in enumerate(pieces))
