"""What an owner signs and hides with: `fedpeft keygen`, `fedpeft join` and `fedpeft withdraw`."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import AllowCode, Debug, allowed_code

EXAMPLES = """\
  fedpeft keygen hospital-a     hospital-a.key, which stays, and hospital-a.pub, for the server
  cat *.pub > trusted           at the server; then `fedpeft merge ... --trust trusted`
"""
JOIN_EXAMPLES = """\
  fedpeft join open --name hospital-a -o a.join
  fedpeft join open --name hospital-a --key hospital-a.key -o a.join      where the plan has keys
"""
WITHDRAW_EXAMPLES = """\
  fedpeft withdraw study --name hospital-a -o a.safetensors
"""

InvitationFolder = Annotated[Path, typer.Argument(metavar="DIR", hidden=True)]
OwnName = Annotated[str, typer.Option(metavar="NAME", help="What the server calls you.")]
NewFile = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to send.")]
SigningKey = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Sign with this key of `keygen`, if the plan has its .pub."),
]
MemoryFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where your own secret and what you hand in are kept; else in your own data folder, "
        "~/.local/share/fedpeft.",
    ),
]


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


def join_study(
    folder: InvitationFolder,
    name: OwnName,
    out: NewFile,
    key: SigningKey = None,
    memory: MemoryFolder = None,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Join a study of masked files: write one line for its roster.

    DIR is the folder of an invitation. The secret half of the key in FILE stays in your own data
    folder. The server then sends a new folder, with the roster of all who joined, for `fedpeft
    contribute`.
    """
    from fedpeft.errors import RunError
    from fedpeft.oneshot.invitation import read_invitation
    from fedpeft.oneshot.joining import join_owner
    from fedpeft.oneshot.keys import signing_key
    from fedpeft.oneshot.releases import Releases
    from fedpeft.storage.files import write_atomically

    if out.exists():
        raise RunError(f"{out} is there already: name another")
    study = read_invitation(folder, allowed_code(allow_code))
    kept = memory or Releases.usual().folder
    joined = join_owner(study, name, kept, signing_key(key) if key else None)
    write_atomically(out, joined.text().encode())
    typer.echo(f"{out} (for the server): {name} joins with the key {joined.key[:16]}")


def withdraw_from_study(
    folder: InvitationFolder,
    name: OwnName,
    out: NewFile,
    key: SigningKey = None,
    memory: MemoryFolder = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Withdraw though an earlier study has an update of yours. The difference between "
            "the sums of both studies may give that update away.",
        ),
    ] = False,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Leave a study of masked files by one that adds nothing.

    The files of all others count then. DIR is the folder with the roster. The sum tells that an
    owner withdrew and not who, but in a private plan the file tells it too. You can make no other
    for this study then.
    """
    from fedpeft.errors import RunError
    from fedpeft.oneshot.invitation import read_invitation
    from fedpeft.oneshot.joining import withdraw
    from fedpeft.oneshot.keys import signing_key
    from fedpeft.oneshot.releases import Releases
    from fedpeft.storage.files import write_atomically

    if out.exists():
        raise RunError(f"{out} is there already: name another")
    study = read_invitation(folder, allowed_code(allow_code))
    kept = memory or Releases.usual().folder
    content = withdraw(study, name, kept, signing_key(key) if key else None, again)
    write_atomically(out, content, private=True)
    typer.echo(f"{out}: {name} adds nothing to the sum, and makes no other file for this study")
