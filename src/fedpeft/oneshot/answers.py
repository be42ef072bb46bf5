"""What is in a contribution: what the loop would make of the frame, where it enters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.core.conversation import PARAMS, Ask, Message
from fedpeft.core.rounds import Round, update_layout
from fedpeft.core.tensors import Layout, finite, norm, numbers_in
from fedpeft.core.types import ClientId, Update
from fedpeft.errors import WireError
from fedpeft.oneshot.contribution_header import Header, cut_short, hides_size
from fedpeft.oneshot.invitation import Invitation
from fedpeft.oneshot.rejections import ContributionError, Rejection
from fedpeft.plan.calibration import round_seed
from fedpeft.plan.coding import answer_codec, downlink_coding, uplink_coding
from fedpeft.rounds.client import weight
from fedpeft.wire.payloads import decode_answer, decode_sent, unpack


@dataclass(frozen=True)
class Size:
    """How much is in a contribution.

    Attributes:
      weight: how much it counts beside others; `length`: the norm of an update, or how long the
        longest mean of sums is; both 0 where masks hide them.
      of: what it is, in a word: "update", or what the plan calls the sums.
    """

    weight: float = 0.0
    length: float = 0.0
    of: str = "update"


def size_of(header: Header, frame: bytes, file: Path | str, invitation: Invitation) -> Size:
    """The size of what is in a file that fits its study.

    Raises:
      ContributionError: the frame is not what an honest client sends.
    """
    if invitation.plan.exchange.sums:
        _check_masked(header, frame, file, invitation)
        return Size()
    if not invitation.plan.rounds:
        return _size_of_sums(header, frame, file, invitation)
    update = _update(header, frame, file, invitation)
    return Size(update.weight, float(norm(update.delta)))


def most_numbers(invitation: Invitation) -> int:
    """How many numbers a file has at most, whoever sends it."""
    if invitation.plan.rounds:
        return sum(x.numel() for x in invitation.state.params.values())
    return numbers_in(_question(invitation, "anyone").expects("anyone"))


def _question(invitation: Invitation, client: ClientId) -> Ask:
    """What the loop would ask one client in a plan of no rounds, which has one such question."""
    plan = invitation.plan
    every: list[Any] = [*plan.hooks("before_rounds"), *(one.measure for one in plan.asking)]
    [asks] = every
    alone, seed = [client], round_seed(plan, 0)
    round = Round(0, plan, alone, alone, seed=seed, run=plan.run, classes=plan.classes)
    ask: Ask = next(asks(invitation.state, round))
    return ask


def _size_of_sums(header: Header, frame: bytes, file: Path | str, invitation: Invitation) -> Size:
    """What the loop would make of an answer that is no update."""
    plan, client = invitation.plan, header.client
    ask = _question(invitation, client)
    try:
        codec, how = answer_codec(plan, ask.phase), uplink_coding(plan, 0, client)
        message = decode_answer(frame, codec, ask.expects(client), how, ask.metrics)
    except WireError as error:
        words = f"{cut_short(error)}; it must hold what the plan asks for"
        raise ContributionError(Rejection.TENSORS, file, words) from None
    if not all(finite(tensors) for tensors in message.tensors.values()):
        words = "it holds NaN or infinities; let the client look at its examples, and make it again"
        raise ContributionError(Rejection.NOT_FINITE, file, words)
    try:
        ask.check(client, message)
    except ValueError as error:
        raise ContributionError(Rejection.SUMS, file, f"{error}; make it again") from None
    size = _told_size(ask, message)
    _check_header(header, size, file, hides_size(plan))
    return size


def _told_size(ask: Ask, message: Message) -> Size:
    return Size(
        ask.weight(message) if ask.weight else 0.0,
        ask.length(message) if ask.length else 0.0,
        ask.phase,
    )


def _check_header(header: Header, size: Size, file: Path | str, hidden: bool) -> None:
    """Raises ContributionError where the header tells of other examples than the sums."""
    told = header.examples
    if hidden and told is None:
        return
    if hidden or told != size.weight:
        words = (
            f"its header says {told} examples, and its answer to {size.of!r} is of "
            f"{size.weight:g}; make it with this version"
        )
        raise ContributionError(Rejection.WEIGHT, file, words)


def _check_masked(header: Header, frame: bytes, file: Path | str, invitation: Invitation) -> None:
    """What can be seen of masked integers: how many there are, and of how many owners."""
    exchange: Any = invitation.plan.exchange
    expected = exchange.expected(expected_update(invitation, header.client))
    owners = len(invitation.roster.keys) if invitation.roster else 0
    try:
        message = decode_answer(frame, invitation.plan.lossless, expected)
        if message.values != {"clients": owners}:
            raise WireError("it is masked for another number of owners than the roster has")
        if header.examples is not None:
            raise WireError("it tells how many examples its owner has, which masks are to hide")
    except WireError as error:
        words = f"{cut_short(error)}; let its owner make it with this version"
        raise ContributionError(Rejection.TENSORS, file, words) from None


def _update(header: Header, frame: bytes, file: Path | str, invitation: Invitation) -> Update:
    """What the loop would make of an update."""
    plan = invitation.plan
    try:
        expected = expected_update(invitation, header.client)
        view = plan.view(header.client, 0, [header.client])
        how = uplink_coding(plan, 0, header.client, view, _sent(invitation))
        optional = plan.optional_groups(expected)
        update = unpack(header.client, frame, plan.uplink, expected, how, optional)
    except WireError as error:
        raise ContributionError(
            Rejection.TENSORS, file, f"{cut_short(error)}; it must hold what the plan trains"
        ) from None
    if not finite(update.delta):
        words = (
            "it holds NaN or infinities: training diverged; "
            "let the client train with a lower local.lr"
        )
        raise ContributionError(Rejection.NOT_FINITE, file, words)
    try:
        _check_claims(header, update, invitation)
    except ValueError as error:
        raise ContributionError(
            Rejection.WEIGHT, file, f"{error}; make it with this version"
        ) from None
    return update


def _check_claims(header: Header, update: Update, invitation: Invitation) -> None:
    """Raises ValueError for values beside an update that do not fit it, or its header."""
    plan = invitation.plan
    # A client that could leave out the number, by which its weight is judged, could count as much
    # as it likes.
    if (header.examples is None) != hides_size(plan):
        raise ValueError(
            f"it {'tells' if hides_size(plan) else 'does not tell'} how many examples its client "
            "has"
        )
    for check in plan.hooks("check_update"):
        check(update, invitation.state, plan)
    counts = update.told.get("class_counts")
    if counts and sum(counts) != header.examples:
        raise ValueError(f"it says {header.examples} examples, and its class counts {sum(counts)}")
    # The weight inside of the seal must be that of the number outside, which is the one that people
    # see.
    if update.weight != (due := weight(plan, header.examples or 0)):
        raise ValueError(f"it wants to count {update.weight:g}, and should {due:g}")


def expected_update(invitation: Invitation, client: ClientId) -> Layout:
    """The layout of what a client of the study sends."""
    plan = invitation.plan
    view = plan.view(client, 0, [client])
    return update_layout(_sent(invitation), view, plan.local_shares)


def _sent(invitation: Invitation) -> Message:
    """What a client of the study trains from."""
    plan = invitation.plan
    groups = {PARAMS, *plan.shares({})}
    return decode_sent(invitation.payload, plan.downlink, groups, downlink_coding(plan, 0))
