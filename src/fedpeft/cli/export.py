"""`fedpeft export`: a run's result as a folder that `transformers` and `peft` load."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import AllowCode, Debug, RunPath, allowed_code

EXAMPLES = """\
  fedpeft export runs/digits-lora-1-001 adapter/
  fedpeft export runs/digits-lora-1-001 model/ --merge
"""


def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(metavar="DIR", hidden=True)],
    merge: Annotated[
        bool, typer.Option("--merge", help="An adapter merged into its base: a whole model.")
    ] = False,
    best: Annotated[
        bool,
        typer.Option("--best", help="The best round by the plan's `select`, not the last one."),
    ] = False,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Write a run's result as a Hugging Face folder.

    The adapter, or the model, of the run in the folder RUN goes to DIR, with a model card;
    `transformers` and `peft` load it.
    """
    from fedpeft.runs.folder import reopen

    code = allowed_code(allow_code)
    folder, _ = reopen(run, code)
    from fedpeft.export.export import export_run

    for path in export_run(folder.path, out, merge, code, best):
        typer.echo(str(path))
