"""`fedpeft export`: a run's result as a folder that `transformers` and `peft` load."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import AllowCode, Debug, RunPath, allowed_code

EXAMPLES = """\
  fedpeft export runs/digits-lora-1-001 adapter/
  fedpeft export runs/digits-lora-1-001 model/ --merge
  fedpeft export runs/personal-1-001 adapter/ --client c003
  fedpeft export runs/sparse-1-001 start/ --lora-rank 8
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
    client: Annotated[
        str,
        typer.Option(
            "--client",
            metavar="NAME",
            help="One client's own model, where `personal` or Ditto gives each its own.",
        ),
    ] = "",
    lora_rank: Annotated[
        int,
        typer.Option(
            "--lora-rank",
            metavar="R",
            min=0,
            help="What changed of the base's weights as LoRA of rank R, the nearest: for "
            "`method.init` (SLoRA).",
        ),
    ] = 0,
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

    for path in export_run(folder.path, out, merge, code, best, client, lora_rank):
        typer.echo(str(path))
