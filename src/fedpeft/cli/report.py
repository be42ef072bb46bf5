"""`fedpeft report`: runs as one page to look at."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import Debug

EXAMPLES = """\
  fedpeft report runs                              all runs below runs/, compared, in report.html
  fedpeft report runs/a runs/b -o compared.html    of two folders
  fedpeft report study --csv --latex               with the tables as files beside the page
"""


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", hidden=True)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page.")] = Path(
        "report.html"
    ),
    csv: Annotated[
        bool, typer.Option("--csv", help="Also the tables, as CSV files beside the page.")
    ] = False,
    latex: Annotated[
        bool, typer.Option("--latex", help="Also a booktabs table beside the page.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show runs as one HTML page.

    DIR is the folder of a run, or one with runs below it, such as a study's; runs of one plan that
    differ in the seed are put together. The page holds all that it needs and opens without a
    network.
    """
    from fedpeft.report.groups import sections
    from fedpeft.report.page import Report, write_report
    from fedpeft.report.reading import read_cells
    from fedpeft.storage.files import check_writable

    check_writable(out)
    cells, problems = read_cells(folders)
    for problem in problems:
        typer.echo(f"warning: {problem}", err=True)
    flags = [flag for flag, wanted in (("--csv", csv), ("--latex", latex)) if wanted]
    command = shlex.join(["fedpeft", "report", *map(str, folders), "-o", str(out), *flags])
    for path in write_report(Report(sections(cells), problems, command), out, csv, latex):
        typer.echo(str(path))
