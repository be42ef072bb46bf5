"""Draw the floors of the house, from the layers that the import check holds and the packages' own
words: python -m tools.architecture

The drawing is docs/architecture.svg. Its colours can be read on light and on dark pages.
"""

import ast
import textwrap
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from fedpeft.catalogue import CATALOGUE

ROOT = Path(__file__).parents[1]
DRAWING = ROOT / "docs" / "architecture.svg"
WIDTH, MARGIN, GAP = 960, 8, 8
COLUMNS = 4
"""Boxes beside each other at most."""
LINE, LETTER = 15, 5.8
"""Height of a line and width of a letter in pixels."""
BESIDE = 150
"""Where the sentence begins in a box that has its floor to itself."""
STYLE = """text { font: 12px system-ui, sans-serif; fill: #16343a }
.name { font: bold 13px ui-monospace, monospace }
.floor { fill: #cfe5e3; stroke: #2a7a78 }
.box { fill: #f6fbfb; stroke: #7fb3b0 }"""


@dataclass(frozen=True)
class Package:
    """A package or module right below `fedpeft`.

    Attributes:
      name: without `fedpeft.`.
      parts: how many parts of the registry it holds.
      text: the first sentence of its docstring.
    """

    name: str
    parts: int
    text: str

    @property
    def title(self) -> str:
        """Its name with how many parts it holds."""
        return f"{self.name} ({self.parts} parts)" if self.parts > 1 else self.name


def read_floors() -> list[list[Package]]:
    """The packages of each floor, the highest floor first.

    Raises:
      ValueError: a package has no docstring to be drawn with.
    """
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = told["tool"]["importlinter"]["contracts"][0]["layers"]
    places = [place for kind in CATALOGUE.values() for place in kind.values()]
    parts = Counter(place.split(".")[1] for place in set(places))
    return [
        [read_package(one.strip().removeprefix("fedpeft."), parts) for one in layer.split("|")]
        for layer in layers
    ]


def read_package(name: str, parts: Counter[str]) -> Package:
    """What the drawing tells of one package or module."""
    path = ROOT / "src" / "fedpeft" / name
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{file.relative_to(ROOT)} has no docstring: say there what it is for")
    sentence = text.replace("\n", " ").partition(". ")[0].rstrip(".") + "."
    return Package(name, parts[name], sentence)


def draw_box(package: Package, left: int, top: int, width: int, height: int) -> str:
    """One package as a box with its name, and its sentence below."""
    return "\n".join(
        [
            *_draw_name(package, left, top, width, height),
            *(
                _draw_text(line, left + 8, top + at * LINE + 3)
                for at, line in enumerate(_wrapped(package, width), 2)
            ),
        ]
    )


def draw_floor(packages: list[Package], top: int) -> tuple[str, int]:
    """The boxes of one floor, and where the floor ends."""
    columns = min(COLUMNS, len(packages))
    width = (WIDTH - 2 * MARGIN - GAP * (columns + 1)) // columns
    lines = max(len(_wrapped(one, width)) for one in packages) if columns > 1 else 0
    height = (1 + lines) * LINE + 10
    drawn = []
    for at, package in enumerate(packages):
        row, column = divmod(at, columns)
        left = MARGIN + GAP + column * (width + GAP)
        down = top + GAP + row * (height + GAP)
        if columns > 1:
            drawn.append(draw_box(package, left, down, width, height))
        else:
            drawn += _draw_name(package, left, down, width, height)
            drawn.append(_draw_text(package.text, left + BESIDE, down + LINE + 2))
    rows = -(-len(packages) // columns)
    tall = rows * (height + GAP) + GAP
    floor = (
        f'<rect class="floor" x="{MARGIN}" y="{top}" width="{WIDTH - 2 * MARGIN}" '
        f'height="{tall}" rx="6"/>'
    )
    return "\n".join([floor, *drawn]), top + tall


def draw(floors: list[list[Package]]) -> str:
    """The whole drawing as SVG."""
    drawn, top = [], MARGIN
    for packages in floors:
        floor, end = draw_floor(packages, top)
        drawn.append(floor)
        top = end + GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img">\n'
        "<title>The packages of fedpeft; each imports only from floors below its own</title>\n"
        f"<style>{STYLE}</style>"
    )
    return "\n".join([head, *drawn, "</svg>"]) + "\n"


def _draw_name(package: Package, left: int, top: int, width: int, height: int) -> list[str]:
    return [
        f'<rect class="box" x="{left}" y="{top}" width="{width}" height="{height}" rx="4"/>',
        f'<text class="name" x="{left + 8}" y="{top + LINE + 2}">{escape(package.title)}</text>',
    ]


def _draw_text(line: str, left: int, top: int) -> str:
    return f'<text x="{left}" y="{top}">{escape(line)}</text>'


def _wrapped(package: Package, width: int) -> list[str]:
    return textwrap.wrap(package.text, int((width - 16) / LETTER))


if __name__ == "__main__":
    DRAWING.write_text(draw(read_floors()), encoding="utf-8")
