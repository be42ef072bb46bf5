"""What `fedpeft --version` says: the release, and of a checkout the commit too."""

import subprocess
from pathlib import Path

from fedpeft import __version__

PATIENCE = 5  # seconds; a repository on a slow disk must not keep the number from being shown


def describe_version(root: Path = Path(__file__).parents[3]) -> str:
    """The release's number; where the package runs from a checkout, e.g. "0.1.0 (commit 1a2b3c4)".

    "changed" follows the commit where files differ from it. Without git, or where git does not
    trust the folder, the number stands alone.

    Args:
      root: the folder that would be a checkout: the one above `src`.
    """
    # an installed package may lie below a repository of somebody else's: that is no checkout
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return __version__
    try:
        commit = _ask_git(root, "rev-parse", "--short=12", "HEAD")
        changes = _ask_git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} (commit {commit}{', changed' if changes else ''})"


def _ask_git(root: Path, *words: str) -> str:
    ended = subprocess.run(
        ["git", "-C", str(root), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return ended.stdout.strip()
