"""`fedpeft node`: the worker that stays where the data lie."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpeft.cli.consent import WithoutAsking, ask_for_consent
from fedpeft.cli.data_report import describe_data, show_data
from fedpeft.cli.options import (
    AllowCode,
    Debug,
    Device,
    PlanFile,
    Settings,
    allowed_code,
    check_owner,
    resolve,
)
from fedpeft.errors import say_count

if TYPE_CHECKING:
    from fedpeft.deploy.node import Node
    from fedpeft.rounds.site import Site

EXAMPLES = """\
  fedpeft node plan.toml --data pictures/ --name a              at a hospital that the plan names
  fedpeft node plan.toml --data pictures/ --name a --key a.key  where a secure sum is signed
  fedpeft watch nodes/a                 what it answered, sent, spent and refused
  fedpeft node plan.toml --client 0     to rehearse: the first client of the plan's partition
"""

ExamplesPath = Annotated[
    str | None, typer.Option(metavar="PATH", help="A file or folder of examples.")
]
OwnName = Annotated[str | None, typer.Option(metavar="NAME", help="What the plan calls you.")]
RehearsedClient = Annotated[
    int | None,
    typer.Option(metavar="K", help="To rehearse: client K, from 0, of the plan's partition."),
]
SigningKey = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Sign with this key of `keygen`, where the plan's exchange.keys has it.",
    ),
]
NodeFolder = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Its folder; else nodes/NAME.")
]
Again = Annotated[
    bool,
    typer.Option("--again", help="Agree to one more run of a plan that was answered before."),
]
Declined = Annotated[
    list[str] | None,
    typer.Option(
        "--decline",
        metavar="MESSAGE",
        help="Never answer this message of the plan, e.g. evaluate; may be given again.",
    ),
]


def node(
    plan: PlanFile = None,
    settings: Settings = None,
    data: ExamplesPath = None,
    name: OwnName = None,
    client: RehearsedClient = None,
    key: SigningKey = None,
    out: NodeFolder = None,
    again: Again = False,
    decline: Declined = None,
    yes: WithoutAsking = False,
    device: Device = "cpu",
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Hold an owner's data and train for Flower's SuperNode.

    It stays with the base model while the SuperNode on this machine comes and goes with jobs.
    Nothing but what PLAN.toml says is ever trained. With --data, `--set data.KEY=VALUE` says how
    your own data are read where they differ, and the server is told. All your examples are trained
    on but those that lie in a test split. The SuperNode is started beside it;
    docs/deploy.md tells how.
    """
    check_owner(data, name, client)
    from fedpeft.deploy.consent import consent_to
    from fedpeft.deploy.node import Node
    from fedpeft.deploy.status import keep_facts
    from fedpeft.deploy.terms import node_site, rehearsal_site
    from fedpeft.oneshot.keys import signing_key
    from fedpeft.oneshot.own_data import own_data, split_settings

    seen: list[str] = []
    look = describe_data(seen)
    read = partial(resolve, plan, code=allowed_code(allow_code))
    if data is not None and name is not None:
        own, others = split_settings(settings or ())
        mine = own_data(data, own)
        site, who, reads = node_site(read(others), mine, name, device, look), name, mine.told
    else:
        (site, who), reads = rehearsal_site(read(settings), client or 0, device, look), []
    folder = (out or Path("nodes") / who).resolve()
    signing = signing_key(key).private_bytes_raw() if key else None
    declined = frozenset(decline or ())
    worker = Node(site, who, folder, _log, signing, again, reads, declined)
    _show(seen, site, reads)
    earlier = len(worker.agreement.answers.tokens)
    consent = consent_to(
        site, who, worker.agreement.clients, earlier if again else 0, declined=declined
    )
    ask_for_consent(consent, folder / site.plan.fingerprint, yes)
    keep_facts(folder, site.plan, who)

    worker.serve(partial(_tell_ready, worker))


def _tell_ready(worker: "Node") -> None:
    """What this node holds, and what to do beside it."""
    site, who = worker.site, worker.client
    typer.echo(
        f"{who}: {say_count(site.data.size(who), 'examples')}, plan {site.plan.fingerprint}, base "
        f"{worker.terms['base']}"
    )
    typer.echo(
        f"start the SuperNode beside it: fedpeft supernode --node {worker.folder} -- --superlink "
        "HOST:PORT ..."
    )
    typer.echo(f"look at what it did: fedpeft watch {worker.folder}")


def _show(seen: Sequence[str], site: "Site", reads: Sequence[str]) -> None:
    """What was read here, and what of that the server is told."""
    show_data(typer.echo, seen, site)
    for words in reads:
        typer.echo(f"the server is told: {words}")


def _log(words: str) -> None:
    """A line with the time, as nobody looks at a node's terminal."""
    from fedpeft.core.units import now

    typer.echo(f"{now()} {words}")
