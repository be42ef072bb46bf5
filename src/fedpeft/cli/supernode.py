"""`fedpeft supernode`: Flower's SuperNode beside a worker, with couriers that begin at once."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import Debug

EXAMPLES = """\
  fedpeft supernode --node nodes/hospital-a -- --superlink fl.example.org:8443 \\
      --root-certificates ca.crt --auth-supernode-private-key hospital-a
"""


def start_supernode(
    node: Annotated[Path, typer.Option(metavar="DIR", help="The folder of this machine's worker.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- ...", help="For flower-supernode.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Run Flower's SuperNode with its imports kept ready.

    It does what `flower-supernode ... --node-config 'node="DIR"'` does. A round is some seconds
    faster, as nothing is loaded again for a message. A SuperNode that breaks or is killed is begun
    again. What stands after `--` goes to flower-supernode.
    """
    from fedpeft.deploy.supernode import supernode as until_ended

    raise typer.Exit(until_ended(node.resolve(), arguments or (), partial(typer.echo, err=True)))
