"""Messages as bytes, and back.

    on the way down, without values: a codec's blob of the tensors
    all other messages:              a frame of [weight, metrics] or [weight, metrics, further
                                     values] around such a blob

Tensors of the main group ("params" or "delta") go under their own names, those of another group
as `<group>/<name>`: one blob, whose codec sees all of them.
"""

from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from typing import Any

from fedpeft.core.conversation import DELTA, MAIN, METRICS, PARAMS, Expected, Message
from fedpeft.core.interfaces import Codec, Coding
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, Tensors, Update, Weighted
from fedpeft.errors import WireError
from fedpeft.wire.frames import check_blob, frame, is_nested, layout_of, show_value, unframe

METRIC_NAME = 100
"""Characters of a metric's name."""


def flatten(groups: Mapping[str, Tensors]) -> Tensors:
    """All tensors of a message under names that tell their group."""
    if len(groups) == 1 and next(iter(groups)) in MAIN:
        return next(iter(groups.values()))
    return {
        name if group in MAIN else f"{group}/{name}": x
        for group, tensors in groups.items()
        for name, x in tensors.items()
    }


def split(flat: Tensors, groups: Collection[str] | None, main: str) -> dict[str, Tensors]:
    """The inverse of `flatten`, for messages that may hold these groups beside the main one; None
    for any groups."""
    if groups is not None and not set(groups) - {main}:
        return {main: flat} if flat else {}
    found: dict[str, dict[str, Any]] = {main: {}}
    for name, x in flat.items():
        group, slash, rest = name.partition("/")
        # A parameter may have a slash in its own name: only the groups that are expected are told
        # from it.
        if slash and (groups is None or group in groups):
            found.setdefault(group, {})[rest] = x
        else:
            found[main][name] = x
    if not found[main]:
        del found[main]
    return dict(found)


def flat_layout(expected: Expected) -> Layout:
    """The layout of a flattened message."""
    return [
        (name if group in MAIN else f"{group}/{name}", shape, dtype)
        for group, tensors in expected.items()
        for name, shape, dtype in tensors
    ]


def encode_message(message: Message, codec: Codec, how: Coding = Coding()) -> bytes:
    """A message as it goes down; a codec that cannot hold its tensors raises ValueError."""
    blob = codec.encode(flatten(message.tensors), how)
    return frame(_header(message.values), blob, nested=True) if message.values else blob


def encode_answer(message: Message, codec: Codec, how: Coding = Coding()) -> bytes:
    """A message as it goes up: it has a header whether it has values or not."""
    blob = codec.encode(flatten(message.tensors), how)
    return frame(_header(message.values), blob, nested=True)


def _header(values: Mapping[str, Any]) -> list[Any]:
    metrics = {name: [m.total, m.weight] for name, m in values.get("metrics", {}).items()}
    rest = {name: x for name, x in values.items() if name not in ("weight", "metrics")}
    return [values.get("weight"), metrics, *([rest] if rest else [])]


def decode_sent(
    blob: bytes, codec: Codec, groups: Collection[str] | None, how: Coding = Coding("down")
) -> Message:
    """What a client received; `groups` are those that it may hold, None for any.

    Raises:
      WireError: the blob is corrupt or malformed.
    """
    values: dict[str, Any] = {}
    if is_nested(blob):
        header, blob = unframe(blob, nested=True)
        values = _values(header)
    return Message(split(codec.decode(blob, how), groups, PARAMS), values)


def decode_answer(
    blob: bytes,
    codec: Codec,
    expected: Expected,
    how: Coding = Coding(),
    metrics: int = METRICS,
    optional: Sequence[Collection[str]] = (),
) -> Message:
    """What a client said. The declared layout is checked before a tensor is allocated.

    Args:
      metrics: how many it may hold at most.
      optional: groups of names, each of which may be missing as a whole.

    Raises:
      WireError: the blob is corrupt, or holds other names, shapes or dtypes than expected, or a
        number that is not finite.
    """
    header, body = unframe(blob, nested=True)
    values = _values(header, metrics)
    declared = layout_of(body)
    wanted = _without_missing(flat_layout(expected), declared, optional)
    check_layout(declared, wanted, body)
    main = next((group for group in expected if group in MAIN), "")
    others = [group for group in expected if group != main]
    flat = codec.decode(body, _expecting(how, wanted))
    return Message(split(flat, others, main or DELTA), values)


def _without_missing(
    expected: Layout, declared: Layout, optional: Sequence[Collection[str]]
) -> Layout:
    """What is expected without the optional groups of which nothing came; of one that came in part
    all is expected."""
    came = {name for name, _, _ in declared}
    missing = {name for group in optional if came.isdisjoint(group) for name in group}
    return [one for one in expected if one[0] not in missing] if missing else expected


def _expecting(how: Coding, layout: Layout) -> Coding:
    """The same for a receiver who knows the layout; `replace` takes five times as long."""
    return Coding(how.direction, how.root, how.round, layout, how.budget, how.path, how.held)


def check_layout(declared: Layout, expected: Layout, body: bytes = b"") -> None:
    """Raises WireError where a message holds other tensors than the plan's."""
    if declared == expected or sorted(declared) == sorted(expected):
        return
    if body:
        check_blob(body)  # what differs by an accident on the way is called that
    got, want = ({n: (s, d) for n, s, d in layout} for layout in (declared, expected))
    if missing := sorted(set(want) - set(got)):
        raise WireError(f"a message lacks {len(missing)} tensors of the plan, first {missing[0]!r}")
    if extra := sorted(set(got) - set(want)):
        raise WireError(
            f"a message holds {len(extra)} tensors that the plan does not send, first "
            f"{extra[0][:80]!r}"
        )
    name = next(n for n in sorted(want) if got[n] != want[n])
    raise WireError(f"tensor {name!r} came as {got[name]}; the plan sends {want[name]}")


def _values(header: Any, most: int = METRICS) -> dict[str, Any]:
    match header:
        case [weight, dict(metrics)]:
            rest: dict[str, Any] = {}
        case [weight, dict(metrics), dict(rest)]:
            pass
        case _:
            raise WireError("a message's header is malformed")
    values = {name: x for name, x in rest.items() if name not in ("weight", "metrics")}
    if weight is not None:
        values["weight"] = _number(weight, "weight")
    if metrics:
        values["metrics"] = _metrics(metrics, most)
    return values


def _metrics(pairs: Mapping[str, Any], most: int) -> dict[str, Weighted]:
    """What a client measured; each name stands in the run's record."""
    if len(pairs) > most or any(len(name) > METRIC_NAME for name in pairs):
        raise WireError(
            f"an update has {len(pairs)} metrics, the longest name with "
            f"{max(map(len, pairs))} characters; at most {most} with {METRIC_NAME} are taken"
        )
    return {name: _read_weighted(pair, name) for name, pair in pairs.items()}


def _number(value: Any, what: str) -> float:
    """JSON as Python reads it has NaN, infinities and integers that no float can hold."""
    try:
        if isinstance(value, (int, float)) and isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise WireError(f"an update's {what[:80]} is {show_value(value)}, which is no finite number")


def _read_weighted(pair: Any, name: str) -> Weighted:
    match pair:
        case [total, weight] if _number(weight, name) >= 0:
            return Weighted(_number(total, name), _number(weight, name))
        case _:
            raise WireError(f"an update's metric {name[:80]!r} is malformed")


def message_of(update: Update) -> Message:
    """An update as a client sends it; its name travels with the job."""
    values = {"weight": update.weight, "metrics": update.metrics, **update.told}
    return Message({DELTA: update.delta}, values)


def update_of(client: ClientId, message: Message) -> Update:
    """The inverse of `message_of`.

    Raises:
      WireError: the weight is missing or not positive.
    """
    told = {name: x for name, x in message.values.items() if name not in ("weight", "metrics")}
    weight = message.values.get("weight")
    # An update that counts 0 or less would divide a mean by nothing, or turn it around.
    if weight is None or not weight > 0:
        raise WireError(f"an update's weight is {weight}; it must be positive")
    metrics = message.values.get("metrics", {})
    return Update(client, message.tensors.get(DELTA, {}), weight, metrics, told=told)


def pack(update: Update, codec: Codec) -> bytes:
    """An update as bytes."""
    return encode_answer(message_of(update), codec)


def unpack(
    client: ClientId,
    blob: bytes,
    codec: Codec,
    expected: Layout,
    how: Coding = Coding(),
    optional: Sequence[Collection[str]] = (),
) -> Update:
    """The inverse of `pack`; `optional` as in `decode_answer`.

    Raises:
      WireError: see `decode_answer` and `update_of`.
    """
    message = decode_answer(blob, codec, {DELTA: expected}, how, optional=optional)
    return update_of(client, message)
