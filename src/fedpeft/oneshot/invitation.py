"""An invitation: a folder that holds all that a client needs, and nothing that it must not see.

    plan.toml        the whole plan, of one round or none, its labels named
    checkpoint/      the starting tensors, as the checkpoint of a run before its first round
    invitation.json  the study's id, and what a client's own base model, labels and transforms must
                     be
    roster.json      of a sum of masked files, the public key of each owner; without it owners join

The private key that opens what clients send lies beside the folder, not in it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

from fedpeft.compute.trainable import read
from fedpeft.core.facts import Fact
from fedpeft.core.signatures import PUBLIC
from fedpeft.core.types import State
from fedpeft.errors import PlanError, RunError
from fedpeft.exchanges.secure.exchange import Secure
from fedpeft.exchanges.secure.masked_files import MaskedFiles
from fedpeft.exchanges.secure.roster import LEAST, Roster
from fedpeft.oneshot.fingerprints import base_fingerprint as base_fingerprint
from fedpeft.oneshot.fingerprints import digest
from fedpeft.oneshot.fingerprints import labels_digest as labels_digest
from fedpeft.oneshot.fingerprints import transforms_digest as transforms_digest
from fedpeft.oneshot.keys import make_sealing_key, require
from fedpeft.oneshot.rosters import read_roster
from fedpeft.oneshot.terms import FORMAT
from fedpeft.oneshot.terms import Terms as Terms
from fedpeft.plan.calibration import calibrate_noise
from fedpeft.plan.checks import refuse
from fedpeft.plan.plan import Plan
from fedpeft.registry import REGISTERED, Code
from fedpeft.rounds.loop import start
from fedpeft.rounds.post import encode_start
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.environment import environment
from fedpeft.runs.folder import RunFolder, read_json, reopen, write_json

FILE = "invitation.json"
LONGEST = 1 << 20
"""Bytes of its plan or terms that are read."""


@dataclass(frozen=True)
class Invitation:
    """An invitation as it is read.

    Attributes:
      state: before the first round.
      payload: what every client starts from, as the loop would send it.
      roster: who hands in a masked file; None where files are in the open, or owners still join.
    """

    path: Path
    plan: Plan
    terms: Terms
    state: State
    payload: bytes
    roster: Roster | None = None


def server_key(path: Path) -> Path:
    """Where the private key of the invitation at `path` lies."""
    path = path.resolve()
    return path.with_name(f"{path.name}.key")


def check_plan(plan: Plan) -> None:
    """Raises PlanError for a plan that one file from each client cannot carry out."""
    if plan.rounds > 1:
        raise PlanError(
            f"rounds = {plan.rounds}: a file for each client is one round. "
            "Set rounds = 1, and local.epochs to all the epochs that a client is to train for; or "
            "rounds = 0 for a head from sums of features, which nobody trains"
        )
    if plan.asking:  # before the facts, which name no key of the plan
        raise PlanError(
            'evaluate_at: to ask "owners" takes a second message, and a file for each client is '
            'one. Set evaluate_at = ["server"] here; the merged model is measured at the owners by '
            "a plan with rounds = 0 and --start MERGED"
        )
    if not plan.rounds:
        _check_one_question(plan)
        return
    for one in plan.each_part():
        if hasattr(one, "before_rounds"):
            raise PlanError(
                f"{type(one).__name__} asks each client before the first round, and a file for "
                "each is one answer: leave it out, or set rounds = 0 for its head alone"
            )
    refuse(plan, NOT_IN_ONE_FILE)


def _check_one_question(plan: Plan) -> None:
    """Raises PlanError for a plan of no rounds that one file from each client cannot carry out."""
    begins = [type(one).__name__ for one in plan.each_part() if hasattr(one, "before_rounds")]
    if len(begins) != 1:
        raise PlanError(
            f"{' and '.join(begins)} ask one after another, and a file for each client is one "
            "answer: leave all but one of them out"
        )
    # That part is the only one that asks, as nobody trains.
    refuse(plan, {fact: why for fact, why in NOT_IN_ONE_FILE.items() if fact not in OF_ASKING})


def masked(plan: Plan) -> Plan:
    """The plan with a secure sum of one masked file from each owner in the place of one that asks
    several times.

    Its `threshold`, of clients that must answer, becomes the least number of owners.
    """
    own = plan.exchange
    if not isinstance(own, Secure):
        return plan
    least = max(LEAST, own.threshold)
    return replace(
        plan,
        exchange=MaskedFiles(least, own.limit, own.max_norm, own.max_weight, own.bits, own.keys),
    )


NOT_IN_ONE_FILE: Mapping[Fact, str] = {
    Fact.ASYNCHRONOUS: "asynchronous steps are many: leave out fedbuff",
    Fact.HANDS_OVER: "local.as_published hands momentum from client to client, and here each "
    "trains alone",
    Fact.MANY_MESSAGES: "{other} asks each client more than once, and a file for each is one "
    "answer: leave it out",
    Fact.SIMULATES: "{other} {what}, and who hands in a file is real: leave it out",
    Fact.PERSONAL: "personal tensors are for clients that come back for the next round, and there "
    "is none: leave them out",
    Fact.REMEMBERS: "{other} makes clients remember something for the next round, and there is "
    "none: leave out SCAFFOLD or error feedback",
    Fact.MIXED_RANKS: "ranks are assigned along the list of all clients, which nobody has yet: "
    "leave them out",
    Fact.MIXED_VIEWS: "{other} {what}, by the list of all clients, which nobody has yet: "
    "leave it out",
    Fact.MIXED_BUDGETS: "tiers are assigned along the list of all clients, which nobody has yet: "
    "leave them out",
    Fact.SERVER_NOISE: "client_dp adds noise whenever files are merged, so that a late client "
    'would make a second release of all the others: take stages = ["local_dp"] or '
    'local = "dp_sgd", whose noise is in the file',
}
"""What one file from each client cannot carry out, and what to do."""
OF_ASKING = (Fact.MANY_MESSAGES,)
"""Of these, what is looked at otherwise in a plan of no rounds."""


def invite(plan: Plan, path: Path) -> Terms:
    """Write an invitation at `path`, and the server's key beside it.

    Raises:
      PlanError: one file from each client cannot carry out the plan.
      RunError: something is there.
      DataError: the plan names no classes, and its data, which would tell, cannot be read.
    """
    require()
    plan = masked(plan)
    check_plan(plan)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} is there already: name a new or an empty folder")
    if server_key(path).exists():
        raise RunError(
            f"{server_key(path)} is there already, the key of an earlier study: name another folder"
        )
    # Each client takes part once, so that its noise is the same whoever it is.
    plan = calibrate_noise(
        replace(plan, classes=plan.classes or plan.data.load().classes), ["anyone"]
    )
    model = plan.model(plan.classes)
    state = start(plan, read(model, plan.method.names(model)))
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    folder.plan.write_text(plan.toml(), encoding="utf-8")
    save_checkpoint(folder.checkpoint, plan, state, environment(plan, "cpu"))
    terms = Terms(
        study=token_hex(16),
        plan=plan.fingerprint,
        base=base_fingerprint(plan, model),
        start=digest(encode_start(plan, state)),
        labels=labels_digest(plan.classes),
        transforms=transforms_digest(plan.task),
        server=make_sealing_key(server_key(path)),
    )
    write_json(path / FILE, asdict(terms))  # last: with it the folder is an invitation
    return terms


def read_invitation(path: Path, code: Code = REGISTERED) -> Invitation:
    """The invitation in the folder `path`, whose plan may name the modules of `code`.

    Raises:
      RunError: it is none, or parts of it were changed.
    """
    # Before any of it is read, since it may come from anybody.
    _check_size(path)
    values = read_json(path / FILE)
    if values is None:
        raise RunError(f"{path} is no invitation: it has no {FILE}; `fedpeft invite` writes one")
    folder, plan = reopen(path, code)
    terms = _terms(path, values)
    saved = load_checkpoint(folder.checkpoint, plan)
    if saved is None or terms.plan != plan.fingerprint:
        raise RunError(
            f"{path} is not as it was written: its plan was changed, or its starting tensors are "
            "gone"
        )
    payload = encode_start(plan, saved.state)
    if digest(payload) != terms.start or labels_digest(plan.classes) != terms.labels:
        raise RunError(
            f"{path} is not as it was written: its starting tensors or labels were changed"
        )
    roster = read_roster(path, terms, plan.exchange)
    return Invitation(path, plan, terms, saved.state, payload, roster)


def _check_size(path: Path) -> None:
    for file in (path / FILE, RunFolder(path).plan):
        if file.is_file() and (size := file.stat().st_size) > LONGEST:
            raise RunError(f"{file} has {size} bytes, and at most {LONGEST} are read")


def _terms(path: Path, values: Mapping[str, Any]) -> Terms:
    if values.get("format") != FORMAT:
        raise RunError(
            f"{path / FILE} is of the kind {values.get('format')!r}; this version reads {FORMAT!r}"
        )
    try:
        terms = Terms(**{key: str(value) for key, value in values.items()})
        if len(bytes.fromhex(terms.server)) == PUBLIC:
            return terms
    except (TypeError, ValueError):
        pass
    raise RunError(f"{path / FILE} is damaged")
