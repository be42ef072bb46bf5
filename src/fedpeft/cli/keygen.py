"""`fedpeft keygen`: a pair of keys, by which a server or other clients know whose a message is."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import Debug

EXAMPLES = """\
  fedpeft keygen hospital-a     hospital-a.key, which stays, and hospital-a.pub, for the server
  cat *.pub > trusted           at the server; then `fedpeft merge ... --trust trusted`
"""


def keygen(
    name: Annotated[str, typer.Argument(metavar="NAME", hidden=True)],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where they go.")
    ] = Path(),
    debug: Debug = False,
) -> None:
    """Make a key for a client to sign with.

    It signs contributions, or its keys of a secure sum. NAME is the client's, which the key may
    sign for and no other.
    """
    from fedpeft.oneshot.keys import make_signing_key

    private, public = make_signing_key(name, out)
    typer.echo(f"{private} (keep it to yourself)\n{public} (for the server)")
