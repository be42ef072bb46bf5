"""What the site's builder does beside what it can do by itself: pages from files outside docs/, and
links to what the site has not."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(```.*?```)", re.DOTALL)
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ADDED = {
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "SECURITY.md": "reporting.md",
    **{path: f"notebooks/{path.stem}.md" for path in sorted((DOCS / "notebooks").glob("*.ipynb"))},
}
"""Pages of the site that are no Markdown below docs/, by the files that they are made of."""
SHOWN = (".md", ".png", ".svg")


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """The site's files, and the added ones."""
    from mkdocs.structure.files import File

    for source, page in ADDED.items():
        text = source.read_text(encoding="utf-8")
        if source.suffix == ".ipynb":
            text = "\n\n".join(read_cells(json.loads(text), source.name))
        files.append(File.generated(config, page, content=text))
    return files


def read_cells(notebook: Mapping[str, Any], name: str) -> Iterator[str]:
    """A notebook's cells as Markdown, with what it takes to run it."""
    for at, cell in enumerate(notebook["cells"]):
        text = "".join(cell["source"]).strip()
        if not text:
            continue
        # four marks, since a cell may show a fenced block itself
        yield text if cell["cell_type"] == "markdown" else f"````python\n{text}\n````"
        if at == 0:
            yield f"This page is the notebook `docs/notebooks/{name}`. `make notebooks` runs it."


def weigh(page: str) -> float:
    """How much a page counts in the search: who looks for a word wants to do something first, and
    know why it was decided so last."""
    if page.startswith(("tutorials/", "guide/", "index.md", "faq.md", "deploy.md", "choosing.md")):
        return 2.0
    return 0.2 if page.startswith(("decisions/", "results/", "changelog")) else 1.0


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """A page whose links to files that the site does not have are their paths."""
    page.meta.setdefault("search", {"boost": weigh(page.file.src_uri)})
    sources = {added: source for source, added in ADDED.items()}
    source = sources.get(page.file.src_uri, DOCS / page.file.src_uri)
    # fenced blocks stand at odd places
    pieces = FENCE.split(text)
    return "".join(
        one if k % 2 else LINK.sub(lambda link: _shown(link, source, page.file.src_uri), one)
        for k, one in enumerate(pieces)
    )


def _shown(link: re.Match[str], source: Path, page: str) -> str:
    """A link as the page has it; `source` is the file that its path begins at."""
    mark, words, target = link.groups()
    if target.startswith(("http://", "https://", "mailto:", "#")):
        return link[0]
    path, _, anchor = target.partition("#")
    aim = (source.parent / path).resolve()
    inside = ADDED.get(aim)
    if inside is None and aim.is_relative_to(DOCS) and aim.suffix in SHOWN:
        inside = aim.relative_to(DOCS).as_posix()
    if inside is None:
        return link[0] if mark else f"{words} (`{aim.relative_to(ROOT)}`)"
    way = os.path.relpath(inside, os.path.dirname(page) or ".")
    return f"{mark}[{words}]({way}{'#' + anchor if anchor else ''})"
