"""`fedpeft sample`: what text-to-image models draw, before their tuning and after."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import AllowCode, Debug, allowed_code

EXAMPLES = """\
  fedpeft sample runs/emoji-diffusion-1-001 -o grid.png
  fedpeft sample runs/one-round runs/three-rounds -o grid.png --caption "a red fish"
"""


def sample(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", hidden=True)],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE.png", help="The picture to write.")
    ],
    number: Annotated[
        int, typer.Option(metavar="N", min=1, help="The number of held-out captions to draw.")
    ] = 6,
    caption: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Draw this instead of held-out captions. Repeatable."),
    ] = None,
    steps: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=1000, help="The number of denoising steps (DDIM)."),
    ] = 25,
    guidance: Annotated[
        float,
        typer.Option(metavar="W", help="The scale of classifier-free guidance; 1 turns it off."),
    ] = 3.0,
    seed: Annotated[
        int, typer.Option(metavar="N", help="The seed of the noise that pictures begin as.")
    ] = 0,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Draw pictures of text-to-image runs, side by side.

    A row for each caption: the held-out picture, what the base model draws, and what the model of
    each RUN draws from the same noise.
    """
    from fedpeft.results.pictures import grid
    from fedpeft.storage.files import write_atomically
    from fedpeft.tasks.drawing import Drawing

    made = grid(
        runs, Drawing(steps, guidance, seed), number, caption or (), allowed_code(allow_code)
    )
    write_atomically(out, made.png())
    typer.echo(str(out))
