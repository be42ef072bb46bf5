"""`fedpeft contribute`: a client trains once and writes the one file that it sends."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from fedpeft.cli.consent import WithoutAsking, ask_for_consent
from fedpeft.cli.contribution_lines import describe_file, describe_guarantees
from fedpeft.cli.data_report import describe_data, show_data
from fedpeft.cli.options import AllowCode, Debug, Device, allowed_code, check_owner

if TYPE_CHECKING:
    from fedpeft.oneshot.contribute import Contributor
    from fedpeft.oneshot.contribution_header import Header
    from fedpeft.oneshot.invitation import Invitation
    from fedpeft.oneshot.own_data import OwnData
    from fedpeft.oneshot.releases import Release, Releases

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
OwnSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="data.KEY=VALUE",
        help="How your own data are read where they differ from the plan's; the server is told. "
        "Repeatable.",
    ),
]
Again = Annotated[
    bool,
    typer.Option(
        "--again",
        help="Make one more file for a study that has one of yours. In a private plan, both "
        "together tell more of your examples than one. It is also needed for a study of masked "
        "files with other owners than an earlier one, and for a file that is not masked after "
        "you joined a study of masked ones.",
    ),
]
MemoryFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where files of private plans are counted and masked ones are kept; else in your "
        "own data folder, "
        "~/.local/share/fedpeft.",
    ),
]


def contribute_file(
    invitation: InvitationFolder,
    out: ContributionFile,
    data: ExamplesPath = None,
    settings: OwnSettings = None,
    name: OwnName = None,
    client: RehearsedClient = None,
    key: SigningKey = None,
    again: Again = False,
    yes: WithoutAsking = False,
    memory: MemoryFolder = None,
    device: Device = "cpu",
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Train on examples that stay here and write one file to send.

    DIR is the folder of an invitation. What leaves is shown first, and you are asked once. The file
    holds what was learned, sealed for the server alone. All your examples are trained on but those
    that lie in a test split, or a share that the plan holds out; where the plan measures a model,
    the file holds counts of these. Of a private plan a second file is another release of the same
    examples, so it is made with --again only. Of a study of masked files there is one file, which
    a second call writes again.
    """
    check_owner(data, name, client, settings or ())
    from fedpeft.oneshot.contribute import contribute as train
    from fedpeft.oneshot.invitation import read_invitation
    from fedpeft.oneshot.keys import require, signing_key
    from fedpeft.oneshot.own_data import own_data
    from fedpeft.oneshot.releases import Releases
    from fedpeft.oneshot.seat import take_seat
    from fedpeft.storage.files import check_unsent

    require()
    check_unsent(out)
    study = read_invitation(invitation, allowed_code(allow_code))
    signer = signing_key(key) if key else None
    seen: list[str] = []
    who = _contributor(study, own_data(data or "", settings or ()), name, client, device, seen)
    releases = Releases(memory) if memory else Releases.usual()
    seat = take_seat(releases.folder, study, who.client, signer, again)
    if made := seat.find_made(who, again):
        _write(out, made)
        typer.echo(f"{out}: the file that {who.client} made for this study before, byte for byte")
        return
    if study.plan.private_part is not None and not again:
        releases.check(study.terms.study, who.client)
    show_data(typer.echo, seen, who.site)
    typer.echo(seat.words(), err=True, nl=False)
    _ask(study, who, releases, yes)
    with click.progressbar(
        length=who.steps, label=who.client, show_pos=True, file=sys.stderr
    ) as bar:
        header, content = train(study, who, signer, lambda: bar.update(1), seat.store)
    every = _release(study, releases, header, again)
    _write(out, seat.keep(who, content))
    typer.echo(f"{out}: {describe_file(header, content, who.words)}")
    for line in describe_guarantees(header, every):
        typer.echo(line)


def _release(
    study: "Invitation", releases: "Releases", header: "Header", again: bool
) -> "Sequence[Release]":
    """All files of a private plan that were made for this study, this one among them; of another
    plan none are counted."""
    if study.plan.private_part is None:
        return ()
    return releases.add(study.terms.study, header.client, header.privacy or {}, again)


def _write(out: Path, content: bytes) -> None:
    from fedpeft.storage.files import write_atomically

    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content, private=True)


def _contributor(
    study: "Invitation",
    data: "OwnData",
    name: str | None,
    client: int | None,
    device: str,
    seen: list[str],
) -> "Contributor":
    """An owner with its data, or a client of the plan's partition; what was read goes to `seen`."""
    from fedpeft.oneshot.contribute import from_own_data, from_partition

    look = describe_data(seen)
    if data.path and name is not None:
        return from_own_data(study, data, name, device, look)
    return from_partition(study, client or 0, device, look)


def _ask(study: "Invitation", who: "Contributor", releases: "Releases", yes: bool) -> None:
    """Whether the owner agrees to what leaves; what he agreed to lies beside his releases."""
    from fedpeft.deploy.consent import consent_to

    for words in who.reads:
        typer.echo(f"the server is told: {words}", err=True)
    earlier = len(releases.of(study.terms.study, who.client))
    consent = consent_to(who.site, who.client, [who.client], earlier, by_file=True)
    ask_for_consent(consent, releases.agreement(study.terms.study, who.client), yes)
