"""Every pluggable part of fedpeft, found by kind and by name.

Adding a part is one new file and one line here. Targets are strings, resolved on first use, so this
module imports no part and `peft` or `datasets` is not loaded by someone who does not use it. Parts
from other packages arrive through entry points `fedpeft.<kind>`; a part of the user's own is named
"module:Class".

To import a module is to run it. So each function that may import one is told which modules the plan
may name (`Code`): all of them in the user's own plan, none in a plan that somebody else wrote.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from fedpeft.catalogue import CATALOGUE
from fedpeft.errors import PlanError, unknown


@dataclass(frozen=True)
class Code:
    """Which modules, beside those of registered parts, a plan may have imported.

    Attributes:
      modules: their whole names; None for any module.
    """

    modules: frozenset[str] | None

    @classmethod
    def of(cls, modules: Iterable[str]) -> "Code":
        return cls(frozenset(modules))

    def check(self, target: str, path: str) -> None:
        """Raises PlanError where "module:name" is of a module that may not be imported."""
        module = target.partition(":")[0]
        if self.modules is not None and module not in self.modules:
            raise PlanError(
                f"{path} = {target!r} runs code, the module {module!r}, and somebody else may have "
                "written this plan: such a plan may name registered parts only. Read that module, "
                f"and if you trust it, add --allow-code {module}"
            )


OWN = Code(None)
"""For a plan of the user's own."""
REGISTERED = Code(frozenset())
"""For a plan that somebody else may have written: registered parts only."""


def names(kind: str) -> dict[str, str]:
    """All parts of a kind, from here and from entry points: name -> "module:Class"."""
    return CATALOGUE[kind] | _installed_parts(kind)


@cache
def _installed_parts(kind: str) -> dict[str, str]:
    """Parts of other packages; kept, since finding them reads a file of every package there is."""
    return {e.name: e.value for e in entry_points(group=f"fedpeft.{kind}")}


def find(kind: str, name: str, code: Code = OWN, path: str = "") -> type:
    """The class registered as `name`, or the one that "module:Class" names.

    Raises:
      PlanError: no such part, and the message lists what exists; or `code` does not allow it.
    """
    known = names(kind)
    if ":" in name:
        code.check(name, path or kind)
    target = name if ":" in name else known.get(name)
    if target is None:
        raise PlanError(unknown(kind, name, known))
    try:
        found: type = import_target(target) if ":" in name else _attribute(target)
    except (ImportError, AttributeError) as error:
        raise PlanError(f"the {kind} {name!r} cannot be loaded from {target}: {error}") from None
    return found


def import_target(target: str) -> Any:
    """What "module:name" names, looked for in the working folder too; last, so that no file there
    stands for a module that is installed. Raises ImportError or AttributeError if there is none."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return _attribute(target)


def _attribute(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def code() -> Any:
    """A dataclass field whose text "module:name" is imported: `module: Any = code()`."""
    return field(metadata={"code": True})


def part(kind: str, default: str) -> Any:
    """A dataclass field that holds another part: `codec: Codec = part("codec", "dense")`."""
    return field(
        default_factory=lambda: build(kind, default), metadata={"kind": kind, "default": default}
    )


def unwritten(default: Any) -> Any:
    """A dataclass field with a plain value that is written only where it is not the default, so
    that a new field changes the name of no plan."""
    return field(default=default, metadata={"unwritten": True})


def table(cls: type) -> Any:
    """A dataclass field that holds settings of one kind, as a table of the plan."""
    return field(default_factory=cls, metadata={"table": cls})


def tables(cls: type) -> Any:
    """A dataclass field that holds any number of such tables, none by default."""
    return field(default=(), metadata={"tables": cls})


def parts(kind: str, unwritten: bool = False) -> Any:
    """A dataclass field that holds any number of parts, none by default; `unwritten` writes none as
    no key, so that a new field changes the name of no plan."""
    return field(default=(), metadata={"kind": kind, "default": None, "unwritten": unwritten})


def unwritten_parts(kind: str, *default: str) -> Any:
    """A dataclass field that holds any number of parts, those of these names by default, which are
    written as no key."""
    metadata = {"kind": kind, "default": None, "defaults": default, "unwritten": True}
    return field(
        default_factory=lambda: tuple(build(kind, name) for name in default), metadata=metadata
    )


def build(
    kind: str, spec: Any, default: str | None = None, path: str = "", code: Code = OWN
) -> Any:
    """Build a part from `"mean"`, or from `{"name": "trimmed_mean", "trim": 0.2}`; a built part
    passes through.

    The part's own fields are its schema. Fields that hold parts are built the same way.

    Raises:
      PlanError: an unknown or missing key, a value of the wrong type or out of range, or a module
        that `code` does not allow; it names `path`.
    """
    where = path or kind
    if isinstance(spec, str):
        spec = {"name": spec}
    if is_dataclass(spec) and not isinstance(spec, type):
        return spec
    if not isinstance(spec, Mapping):
        known = ", ".join(sorted(names(kind)))
        raise PlanError(
            f"{where} = {spec!r}: must be a name, a table with a `name`, or a dataclass made in "
            f"Python; known: {known}"
        )
    settings = dict(spec)
    name = settings.pop("name", default)
    if not isinstance(name, str):
        raise PlanError(f"{where} needs a `name`; known: {', '.join(sorted(names(kind)))}")
    cls = find(kind, name, code, where)
    if not is_dataclass(cls):
        raise PlanError(f"{where}: {name!r} is no dataclass, so its settings cannot be told")
    return construct(cls, settings, f"{where} {name!r}", where, code, kind)


def construct(
    cls: type,
    settings: Mapping[str, Any],
    what: str,
    path: str,
    code: Code = OWN,
    kind: str = "",
) -> Any:
    """Build a dataclass from plain values, checking keys and types; where it is a part, of `kind`.

    Raises:
      PlanError: see `build`.
    """
    schema: dict[str, Field[Any]] = {f.name: f for f in fields(cls) if f.init}
    for key in settings:
        if key not in schema:
            others = _key_of_others(kind, str(key), path)
            raise PlanError(f"{what}: {_unknown_key(schema, settings, str(key), code, others)}")
    for key, f in schema.items():
        if key not in settings and f.default is MISSING and f.default_factory is MISSING:
            raise PlanError(f"{what} needs the key {key!r}")
    values = {
        key: _value(cls, schema[key], value, f"{path}.{key}", code)
        for key, value in settings.items()
    }
    try:
        return cls(**values)
    except ValueError as error:
        raise PlanError(f"{what}: {error}") from None


def _unknown_key(
    schema: Mapping[str, Field[Any]], settings: Mapping[str, Any], key: str, code: Code, others: str
) -> str:
    """What to set instead of a key that is not there; `others` says of which parts it is one."""
    if others:
        return others
    if inside := _places(schema, settings, key, code):
        return f"no key called {key!r} here: it is a part's, so set {' or '.join(inside)}"
    return unknown("key", key, schema)


def _key_of_others(kind: str, key: str, path: str) -> str:
    """What to do with a key that other parts of this kind have; "" where none has it. A plan whose
    part is changed by its name alone, as by `--set partition.name=iid`, keeps the keys of the one
    before."""
    owners = [name for name in names(kind) if key in _keys(kind, name)] if kind else []
    if not owners:
        return ""
    return (
        f"no key called {key!r}, which belongs to {', '.join(sorted(owners))}. A new name alone "
        "keeps the keys that the plan has: leave this key out, or set all of the part: "
        f"--set '{path.removeprefix('plan.')}={{name=\"NAME\"}}'"
    )


def _keys(kind: str, name: str) -> set[str]:
    """The keys of a registered part; none where it cannot be loaded here."""
    try:
        cls = find(kind, name)
        return {f.name for f in fields(cls) if f.init} if is_dataclass(cls) else set()
    except PlanError:
        return set()


def _places(
    schema: Mapping[str, Field[Any]], settings: Mapping[str, Any], key: str, code: Code
) -> list[str]:
    """Where the parts that are chosen have a key of this name, e.g. "local.lr", nearest first."""
    found: list[str] = []
    deeper: list[str] = []
    for name, slot in schema.items():
        kind, default = slot.metadata.get("kind"), slot.metadata.get("default")
        spec = settings.get(name, default)
        given = spec if isinstance(spec, Mapping) else {"name": spec}
        chosen = given.get("name", default)
        if kind is None or not isinstance(chosen, str) or chosen not in names(kind):
            continue
        own = {f.name: f for f in fields(find(kind, chosen, code)) if f.init}
        found += [f"{name}.{key}"] * (key in own)
        deeper += [f"{name}.{place}" for place in _places(own, given, key, code)]
    return [*found, *deeper]


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a class's fields; kept, since they are text that is evaluated anew each time."""
    return get_type_hints(cls)


@cache
def _validator(cls: type, key: str) -> TypeAdapter[Any]:
    """What checks the values of a field; kept, since to build one takes longer than all checks.

    It is kept by class and key, not by type: pydantic tries the members of a union in their order,
    and two unions of another order are equal.
    """
    return TypeAdapter(_hints(cls)[key])


def _value(cls: type, slot: Field[Any], value: Any, path: str, code: Code) -> Any:
    """The checked value of one field of `cls`."""
    if "kind" in slot.metadata:
        return _part(slot, _hints(cls)[slot.name], value, path, code)
    if "table" in slot.metadata:
        return _table(slot.metadata["table"], value, path, code)
    if "tables" in slot.metadata:
        each = value if isinstance(value, (list, tuple)) else [value]
        cls = slot.metadata["tables"]
        return tuple(_table(cls, one, f"{path}[{i}]", code) for i, one in enumerate(each))
    if "code" in slot.metadata and isinstance(value, str):
        code.check(value, path)
    try:
        return _validator(cls, slot.name).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise PlanError(f"{path} = {value!r}: {reason[0].lower()}{reason[1:]}") from None


def _table(cls: type, value: Any, path: str, code: Code) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        known = ", ".join(f.name for f in fields(cls))
        raise PlanError(f"{path} = {value!r}: must be a table; its keys are {known}")
    return construct(cls, value, path, path, code)


def _part(slot: Field[Any], hint: Any, value: Any, path: str, code: Code) -> Any:
    """The part of such a field, or a tuple of them where it holds any number; there one alone is
    one of one."""
    kind, default = slot.metadata["kind"], slot.metadata["default"]
    if get_origin(hint) is not tuple:
        return _able(kind, build(kind, value, default, path, code), hint, path)
    protocol = get_args(hint)[0]
    if not isinstance(value, (list, tuple)):
        return (_able(kind, build(kind, value, default, path, code), protocol, path),)
    places = {f"{path}[{i}]": one for i, one in enumerate(value)}
    return tuple(
        _able(kind, build(kind, one, default, place, code), protocol, place)
        for place, one in places.items()
    )


def _able(kind: str, built: Any, protocol: Any, path: str) -> Any:
    """A part that can do what its kind must.

    Raises:
      PlanError: it lacks some of what the protocol names.
    """
    asked = vars(protocol) if getattr(protocol, "_is_protocol", False) else {}
    lacking = [
        name
        for name in asked
        if (name == "__call__" or name[0] != "_") and not hasattr(built, name)
    ]
    if lacking:
        raise PlanError(
            f"{path}: {type(built).__name__} is no {kind}: it has no {', '.join(lacking)}"
        )
    return built


def describe(kind: str, built: Any) -> dict[str, Any]:
    """The inverse of `build`: plain values that build the same part again."""
    target = f"{type(built).__module__}:{type(built).__qualname__}"
    registered = {where: name for name, where in names(kind).items()}
    return {"name": registered.get(target, target)} | settings_of(built)


def settings_of(built: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain values; absent values and parts of the caller's own making
    stay readable."""
    plain: dict[str, Any] = {}
    for f in fields(built):
        value = getattr(built, f.name)
        if not f.init or _is_left_out(f, value):
            continue
        kind = f.metadata.get("kind")
        if "table" in f.metadata:
            plain[f.name] = settings_of(value)
        elif "tables" in f.metadata:
            plain[f.name] = [settings_of(one) for one in value]
        elif kind is None:
            plain[f.name] = list(value) if isinstance(value, tuple) else value
        elif isinstance(value, tuple):
            plain[f.name] = [describe(kind, one) for one in value]
        else:
            plain[f.name] = describe(kind, value)
    return {key: value for key, value in plain.items() if value is not None}


def _is_left_out(f: Field[Any], value: Any) -> bool:
    """Whether a plan is written without this value."""
    if not f.metadata.get("unwritten"):
        return False
    default = f.default if f.default_factory is MISSING else f.default_factory()
    return bool(value == default)
