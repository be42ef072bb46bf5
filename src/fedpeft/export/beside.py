"""What lies beside a model's files in an export: what makes its inputs, its card, where it comes
from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpeft.export.inputs import save_inputs
from fedpeft.export.provenance import write_provenance
from fedpeft.export.serving import serving_section
from fedpeft.results.result import Result


def save_beside(
    card: str,
    result: Result,
    read: Result,
    folder: Path,
    out: Path,
    options: Mapping[str, Any],
) -> None:
    """Write it.

    Args:
      result: what is exported.
      read: the run's own, which provenance is about.
      folder: where the export lies now.
      out: what the card calls it.
      options: what was asked of the export and is not its default.
    """
    save_inputs(result.plan.task, folder)
    whole = card + serving_section(result, folder, out)
    (folder / "README.md").write_text(whole, encoding="utf-8")
    write_provenance(read, folder, options)
