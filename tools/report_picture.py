"""Pictures of a report's page, light and dark, as a Chromium that is installed shows its head.

    python tools/report_picture.py runs/picture docs/report.png

It writes docs/report-dark.png too. The first argument is a folder of runs, such as that of a sweep
(docs/guide/studies.md has the one of the pictures here), or a study's folder in an archive of raw
cells (`python -m tools.results unpack`).
"""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedpeft.report.groups import sections
from fedpeft.report.page import Report, write_report
from fedpeft.report.reading import read_cells

NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1280, "height": 1480}


def take(page: Path, out: Path) -> None:
    """The head of the page in `out`, and in dark in the file beside it.

    Raises:
      SystemExit: there is no browser, or the page does not draw.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise SystemExit("no picture is taken: playwright is not installed") from None
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise SystemExit(f"no picture is taken: none of {', '.join(NAMES)} is installed")
    with sync_playwright() as driver:
        browser: Any = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for scheme, path in (("light", out), ("dark", out.with_stem(f"{out.stem}-dark"))):
            tab = browser.new_page(color_scheme=scheme, viewport=SIZE)
            tab.goto(page.as_uri())
            tab.wait_for_function("document.documentElement.dataset.drawn", timeout=60_000)
            if tab.evaluate("document.documentElement.dataset.drawn") != "yes":
                raise SystemExit("no picture is taken: the page does not draw")
            tab.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    cells, out = Path(sys.argv[1]), Path(sys.argv[2])
    if not cells.is_dir():
        raise SystemExit(f"no picture is taken: there is no folder {cells}")
    with TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_report(Report(sections(read_cells([cells])[0]), (), f"fedpeft report {cells}"), page)
        take(page, out)
