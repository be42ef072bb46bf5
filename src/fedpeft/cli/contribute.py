"""`fedpeft contribute`: a client trains once and writes the one file that it sends."""

import sys
from pathlib import Path
from typing import Annotated

import click
import typer

from fedpeft.cli.options import Debug, Device, check_owner

EXAMPLES = """\
  fedpeft contribute study --data pictures/ --name hospital-a --key hospital-a.key -o a.safetensors
  fedpeft contribute study --client 0 -o 0.safetensors     the first client of the plan's partition
"""


InvitationFolder = Annotated[Path, typer.Argument(metavar="DIR", hidden=True)]
ContributionFile = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", help="The file to send.")
]
ExamplesPath = Annotated[
    str | None, typer.Option(metavar="PATH", help="A file or folder of examples.")
]
OwnName = Annotated[str | None, typer.Option(metavar="NAME", help="What the server calls you.")]
RehearsedClient = Annotated[
    int | None,
    typer.Option(metavar="K", help="To try it out: client K, from 0, of the plan's partition."),
]
SigningKey = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Sign with this key of `keygen`.")
]


def contribute(
    invitation: InvitationFolder,
    out: ContributionFile,
    data: ExamplesPath = None,
    name: OwnName = None,
    client: RehearsedClient = None,
    key: SigningKey = None,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Train on examples that stay here and write one file to send.

    DIR is the folder of an invitation. The file holds what was learned, sealed for the server
    alone. Part of the data is held out as the plan says and not trained on.
    """
    check_owner(data, name, client)
    from fedpeft.core.amounts import size
    from fedpeft.core.stores import write_atomically
    from fedpeft.errors import RunError
    from fedpeft.oneshot.contribute import contribute as train
    from fedpeft.oneshot.contribute import from_own_data, from_partition
    from fedpeft.oneshot.invitation import read_invitation
    from fedpeft.oneshot.keys import require, signing_key

    require()
    if out.exists():
        raise RunError(
            f"{out} is there already: a file that may have been sent is not written over; name "
            "another"
        )
    study, signer = read_invitation(invitation), signing_key(key) if key else None
    if data is not None and name is not None:
        who = from_own_data(study, data, name, device)
    else:
        who = from_partition(study, client or 0, device)
    with click.progressbar(
        length=who.steps, label=who.client, show_pos=True, file=sys.stderr
    ) as bar:
        header, content = train(study, who, signer, lambda: bar.update(1))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content)
    count, signed = who.site.data.size(who.client), "signed" if key else "unsigned"
    typer.echo(f"{out}: {size(len(content))} from {count} examples of {header.client}, {signed}")
    if header.privacy:
        words = (f"{word} {value}" for word, value in header.privacy.items())
        typer.echo(f"privacy: {', '.join(words)}")
