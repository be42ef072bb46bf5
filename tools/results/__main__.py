"""Results of studies: rows in docs/results, and the archive of the raw cells.

    python -m tools.results table runs/scarcity-small -o docs/results/scarcity-small.csv
    python -m tools.results pack runs                 # dist/results-VERSION.tar.xz and its SHA-256
    python -m tools.results unpack results-VERSION.tar.xz --out runs/cells

`table` adds the finished cells of a study to its CSV file; of a cell that is there already, with
the same seed and the same version of the plan's keys, it writes the row anew.
"""

import argparse
from pathlib import Path

from fedpeft import __version__
from fedpeft.errors import FedpeftError
from fedpeft.studies.study import read_study
from tools.results.archive import digest, digest_file, pack, read_digest, unpack
from tools.results.cells import results_of
from tools.results.rows import merge_results, read_results, write_results

ROOT = Path(__file__).resolve().parents[2]


def write_table(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.runs
    file = arguments.study or ROOT / "studies" / f"{folder.resolve().name}.toml"
    new = results_of(read_study(file), folder)
    if not new:
        raise SystemExit(
            f"{folder} has no finished run of {file}: `fedpeft sweep {file}` makes them"
        )
    runs = len(list(folder.glob("*/summary.json")))
    if runs > len(new):
        print(f"left out: {runs - len(new)} finished runs in {folder} are no cells of {file}")
    old = read_results(arguments.out) if arguments.out.exists() else []
    merged = merge_results(old, new)
    write_results(merged, arguments.out)
    print(f"{arguments.out}: {len(merged)} rows, {len(new)} of them from {folder}")


def write_archive(arguments: argparse.Namespace) -> None:
    archive = arguments.out or ROOT / "dist" / f"results-{__version__}.tar.xz"
    count = pack(arguments.runs, archive)
    size = archive.stat().st_size / 2**20
    print(f"{archive}: {count} cells, {size:.2f} MiB, SHA-256 {digest(archive)}")


def read_archive(arguments: argparse.Namespace) -> None:
    wanted = arguments.sha256 or read_digest(_known_digest(arguments.archive))
    count = unpack(arguments.archive, arguments.out, wanted)
    print(f"{arguments.out}: {count} cells")


def _known_digest(archive: Path) -> Path:
    """The file with the archive's SHA-256: of this repository, or else beside the archive."""
    own = digest_file(ROOT / "docs" / "results" / archive.name)
    return own if own.exists() else digest_file(archive)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    table = commands.add_parser("table", help="Add a study's finished cells to its CSV file.")
    table.add_argument("runs", type=Path, help="The folder with the study's run folders.")
    table.add_argument("-o", "--out", type=Path, required=True, help="The CSV file.")
    table.add_argument("--study", type=Path, help="The study's file [studies/FOLDER.toml].")
    table.set_defaults(act=write_table)
    packs = commands.add_parser("pack", help="Pack raw cells into one archive.")
    packs.add_argument("runs", type=Path, help="The folder that has STUDY/CELL/.")
    packs.add_argument("-o", "--out", type=Path, help="[dist/results-VERSION.tar.xz]")
    packs.set_defaults(act=write_archive)
    unpacks = commands.add_parser("unpack", help="Check an archive and unpack its cells.")
    unpacks.add_argument("archive", type=Path)
    unpacks.add_argument("-o", "--out", type=Path, required=True, help="A new folder.")
    unpacks.add_argument("--sha256", help="What it must be [docs/results/ARCHIVE.sha256].")
    unpacks.set_defaults(act=read_archive)
    return parser


def main() -> None:
    arguments = build_parser().parse_args()
    try:
        arguments.act(arguments)
    except FedpeftError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
