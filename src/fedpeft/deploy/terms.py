"""What a server and its nodes must agree on before a node trains anything."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from logging import getLogger
from secrets import token_hex
from typing import Any

from fedpeft.core.client_names import ALLOWED, find_problem
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Data
from fedpeft.core.signatures import public_of
from fedpeft.core.types import ClientId
from fedpeft.errors import DataError, PlanError
from fedpeft.oneshot.contribute import own_site
from fedpeft.oneshot.invitation import base_fingerprint, labels_digest, transforms_digest
from fedpeft.oneshot.own_data import OwnData
from fedpeft.plan.calibration import calibrate_noise
from fedpeft.plan.checks import reads_classes, refuse
from fedpeft.plan.plan import Plan
from fedpeft.rounds.absent import absent_site, held_out_of
from fedpeft.rounds.site import Onlooker, Site
from fedpeft.runs.environment import environment
from fedpeft.runs.execute import open_run_site
from fedpeft.runs.folder import RunFolder
from fedpeft.storage.files import write_atomically

LIBRARIES = ("fedpeft", "torch", "transformers", "peft")
WHAT = {
    **{
        name: f"another version of {name} here than at the server: install the same"
        for name in LIBRARIES
    },
    "plan": "the plan here is not the run's: give both sides the same file, with the same settings",
    "base": "the base model here is not the run's: take the same weights and the same versions of "
    "torch, transformers and peft",
    "labels": "the labels here are not the run's: name them in the plan, classes = [...]",
    "transforms": "what becomes of an example here is not what the run does: take the same version "
    "of fedpeft, and the same image processor or tokenizer with the base model",
}
"""By what is compared, what to do where it differs; versions first, since the rest may follow from
them."""


def terms_of(site: Site) -> dict[str, str]:
    """What a site's libraries are, and, as digests, its plan, base model, labels and transforms."""
    plan = replace(site.plan, classes=site.classes)
    versions = environment(plan, site.device)["versions"]
    return {
        # "+cpu" and "+cu126" are of one source.
        **{name: versions[name].partition("+")[0] for name in LIBRARIES},
        "plan": site.plan.fingerprint,
        "base": base_fingerprint(plan),
        "labels": labels_digest(site.classes),
        "transforms": transforms_digest(plan.task),
    }


def disagreement(own: Mapping[str, str], asked: Mapping[str, Any]) -> str:
    """Why one who has these terms of its own cannot work on those; empty if it can."""
    for name, why in WHAT.items():
        if own[name] != asked.get(name):
            return f"{why} ({own[name]} here, {asked.get(name)} there)"
    return ""


NOT_AT_NODES: Mapping[Fact, str] = {
    Fact.SEVERAL_MODELS: "{other} {what}, and this server cannot measure nodes with theirs: leave "
    "it out",
    Fact.SIMULATES: "{other} {what}, and nodes are real: leave it out",
    Fact.HANDS_OVER: "local.as_published hands momentum from client to client, and here each is a "
    "machine of its own",
    Fact.ASYNCHRONOUS: "asynchronous steps run on a simulated clock, which nodes do not have: "
    "leave out fedbuff",
    Fact.SERVER_MODEL: "{other} {what}, and a server of nodes holds no model that its rounds may "
    "call: leave it out",
    Fact.PERSONAL: "personal tensors stay with their nodes, where this server cannot measure them: "
    "leave them out",
}
"""What cannot be carried out where the server sees no client."""


def check_node_plan(plan: Plan) -> None:
    """Raises PlanError for a plan that cannot be carried out where the server sees no client."""
    refuse(plan, NOT_AT_NODES)
    for name in plan.nodes.names or ():
        if problem := find_problem(name):
            raise PlanError(f"nodes: {name!a} is no name for a node: {problem}; {ALLOWED}")


def check_signer(plan: Plan, name: ClientId, private: bytes | None) -> None:
    """Raises PlanError unless a node has the signing key that the plan knows it by, and none where
    it knows none."""
    known = plan.exchange.signers.get(name)
    if private is None and plan.exchange.signers:
        raise PlanError(
            "the plan's exchange.keys says who signs: give the node its own key, --key FILE"
        )
    if private is not None and public_of(private) != known:
        has = "has another key" if known else "has no key"
        raise PlanError(
            f"the plan's exchange.keys {has} for {name!r}: put the line of its .pub there, on all "
            "sides"
        )


def node_site(
    plan: Plan, data: OwnData, name: ClientId, device: str = "cpu", look: Onlooker | None = None
) -> Site:
    """The site of a node with its own data, which `look` is shown.

    Raises:
      PlanError: the plan does not know such a node, or does not name the labels.
      DataError: the data cannot be read, or have a label that the plan does not have.
    """
    check_node_plan(plan)
    if name not in (plan.nodes.names or ()):
        known = ", ".join(plan.nodes.names or ()) or "none"
        raise PlanError(
            f"the plan names no node {name!r}: its nodes are {known}; "
            f"set nodes = [{name!r}, ...] in it, with the names of all owners"
        )
    plan = calibrate_noise(check_labels_named(plan), plan.nodes.names or ())
    site = own_site(plan, data, name, device, look)
    if plan.asking and not site.count_own_held_out(name):
        getLogger("fedpeft").warning(
            "%s has no held-out examples, so that it trains and measures nothing: put some into a "
            "test split of its data, or set partition.held_out in the plan",
            name,
        )
    return site


def rehearsal_site(
    plan: Plan, number: int, device: str = "cpu", look: Onlooker | None = None
) -> tuple[Site, ClientId]:
    """The site of a node that stands for client `number`, from 0, of the plan's own partition.

    Raises:
      PlanError: its clients are nodes with data of their own, or there is no such client.
    """
    check_node_plan(plan)
    if plan.nodes.names is not None:
        raise PlanError(
            "the plan's clients are nodes with their own data: give --data and --name, or leave "
            "out `nodes`"
        )
    site = open_run_site(plan, device, look)
    if not 0 <= number < len(site.data.clients):
        raise PlanError(
            f"--client {number}: the plan's partition has {len(site.data.clients)} clients, "
            "counted from 0"
        )
    return site, site.data.clients[number]


def server_site(plan: Plan, say: Callable[[str], None] = lambda words: None) -> Site:
    """The site of the server. Where the clients are nodes, nobody's training examples are there.

    The plan's data, where they can be read, are then the server's own, and their held-out part is
    measured; else nothing is, which `say` is told.

    Raises:
      DataError, PlanError: what is wrong with the plan or its data.
    """
    check_node_plan(plan)
    if plan.nodes.names is None:
        return open_run_site(plan)
    # Both sides calibrate for the same names, and so come to the same noise.
    nodes, plan = plan.nodes.names, calibrate_noise(check_labels_named(plan), plan.nodes.names)
    test: Data | None = None
    try:
        test = held_out_of(plan)
    except DataError as error:
        say(f"the server has no held-out examples, so nothing is measured: {error}")
    return absent_site(plan, plan.model(plan.classes), dict.fromkeys(nodes, 0), test)


def check_labels_named(plan: Plan) -> Plan:
    """The plan, if it names the labels or its task learns none of the data's; raises PlanError if
    it does not."""
    if not plan.classes and reads_classes(plan.task):
        raise PlanError(
            "the plan does not name the labels, and a node need not have them all: set classes = "
            "[...]"
        )
    return plan


def token_at(folder: RunFolder) -> str:
    """What tells this run from others of the same plan, so that nodes keep their memories apart;
    drawn once."""
    path = folder.path / "token"
    if not path.exists():
        write_atomically(path, token_hex(16).encode(), private=True)
    return path.read_text()
