"""Plans of version 1, whose settings were flat keys, as plans of version 2."""

from collections.abc import Mapping
from typing import Any

from fedpeft.errors import PlanError

TABLES = {
    "privacy": ("target_epsilon", "delta", "accountant"),
    "admission": ("min_replies", "norm_factor", "max_refusals", "weight_factor"),
    "compute": ("threads", "base_dtype", "pack", "features"),
}
EXCHANGES = {"fit": "plain"}


def convert(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values under the keys of this version, and in words what was converted.

    Values of neither version stay as they are: the reading that follows names them.

    Raises:
      PlanError: a setting of a vote or of asynchronous steps without them.
    """
    new, changes = dict(values), list[str]()
    new.pop("schema", None)
    for table, keys in TABLES.items():
        _into_table(new, table, {key: key for key in keys}, changes)
    # In version 1 this was a list of names, and now it is a table.
    if not isinstance(new.get("nodes"), Mapping):
        _into_table(new, "nodes", {"nodes": "names", "deadline": "deadline"}, changes)
    else:
        _into_table(new, "nodes", {"deadline": "deadline"}, changes)
    _exchange(new, changes)
    _routing(new, changes)
    _algorithms(new, changes)
    _rows(new, changes)
    _scaffold(new, changes)
    return new, changes


def _into_table(
    new: dict[str, Any], table: str, keys: Mapping[str, str], changes: list[str]
) -> None:
    """Move flat keys into a table."""
    found = {keys[key]: new.pop(key) for key in keys if key in new}
    if not found:
        return
    held = new.get(table, {})
    new[table] = {**(held if isinstance(held, Mapping) else {}), **found}
    changes += [f"{old} is {table}.{key}" for old, key in keys.items() if key in found]


def _exchange(new: dict[str, Any], changes: list[str]) -> None:
    held = new.get("exchange")
    name = held.get("name") if isinstance(held, Mapping) else held
    if name in EXCHANGES:
        renamed = EXCHANGES[name]
        new["exchange"] = {**held, "name": renamed} if isinstance(held, Mapping) else renamed
        changes.append(f'exchange = "{name}" is "{renamed}"')


def _routing(new: dict[str, Any], changes: list[str]) -> None:
    """`personal` and `ranks` are parts of the routing."""
    for key, field in (("personal", "patterns"), ("ranks", "ranks")):
        if key not in new:
            continue
        value = new.pop(key)
        if value is not None and (key == "ranks" or value):
            one = {"name": key, field: [value] if isinstance(value, (str, int)) else value}
            new["routing"] = [*_list(new.get("routing")), one]
        changes.append(f'{key} is routing = [{{ name = "{key}", {field} = [...] }}]')


def _algorithms(new: dict[str, Any], changes: list[str]) -> None:
    """A head from class means, a vote and asynchronous steps are algorithms."""
    found: list[Any] = []
    if "head_start" in new and (name := new.pop("head_start")) is not None:
        head = _head(new)
        # Rows had the length 1 in version 1; left out it means something else now.
        found.append({"name": name, "length": 1.0, **({"head": head} if head else {})})
        changes.append('head_start is algorithms = [{ name = "class_means", length = 1.0 }]')
    vote = {"strengths": "vote", "share": "vote_share"}
    # The head comes first and the vote after it: algorithms are listed outermost first, and the
    # vote is on merges that begin with the head.
    if given := _take(new, vote):
        if "strengths" not in given:
            raise PlanError(
                "vote_share: nobody votes; set `vote` to strengths to choose from, or leave it out"
            )
        found.append({"name": "vote", **given})
        changes.append('vote is algorithms = [{ name = "vote", strengths = [...] }]')
    buffered = {key: key for key in ("buffer", "staleness", "pace_spread")}
    if given := _take(new, buffered):
        if "buffer" not in given:
            raise PlanError(
                f"{' and '.join(given)}: only asynchronous steps have it; set `buffer`, or leave "
                "it out"
            )
        found.append({"name": "fedbuff", **given})
        changes.append('buffer is algorithms = [{ name = "fedbuff", buffer = ... }]')
    if found:
        new["algorithms"] = [*_list(new.get("algorithms")), *found]


def _take(new: dict[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    return {
        key: value
        for key, old in keys.items()
        if old in new and (value := new.pop(old)) is not None
    }


def _rows(new: dict[str, Any], changes: list[str]) -> None:
    """Rows of the head by class counts are an aggregator around the plan's."""
    if "head_rows" not in new or (name := new.pop("head_rows")) is None:
        return
    known = {"class_counts": "class_rows"}
    outer: dict[str, Any] = {"name": known.get(name, name)}
    outer["inner"] = new.get("aggregator", "mean")
    if head := _head(new):
        outer["head"] = head
    new["aggregator"] = outer
    changes.append('head_rows is aggregator = { name = "class_rows", inner = "mean" }')


def _scaffold(new: dict[str, Any], changes: list[str]) -> None:
    """SCAFFOLD is one part, `local.correction`; the server keeps its own optimizer.

    Raises:
      PlanError: the server has SCAFFOLD's half, and the clients have another correction.
    """
    server = new.get("server")
    name = server.get("name") if isinstance(server, Mapping) else server
    if name != "scaffold":
        return
    local = new.get("local")
    correction = local.get("correction") if isinstance(local, Mapping) else None
    told = correction.get("name") if isinstance(correction, Mapping) else correction
    if told != "scaffold":
        raise PlanError(
            'server = "scaffold" is of plans of version 1, and goes with the clients\' half: set '
            'local.correction = "scaffold" and leave `server` out, or as another optimizer'
        )
    new["server"] = server.get("inner", "average") if isinstance(server, Mapping) else "average"
    changes.append('server = "scaffold" is local.correction = "scaffold" alone')


def _head(new: Mapping[str, Any]) -> str:
    """The head that the method names, if it does."""
    method = new.get("method")
    head = method.get("head") if isinstance(method, Mapping) else None
    return head if isinstance(head, str) and head != "auto" else ""


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
