"""An owner's own data: read as the plan reads its own, except for what the owner says of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fedpeft.core.types import Examples
from fedpeft.data.class_order import in_order
from fedpeft.data.short_forms import FORMS, source
from fedpeft.errors import DataError, PlanError
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import set_key
from fedpeft.registry import build, describe, names
from fedpeft.storage.locate import locate

DATA = "data."
"""What the keys begin with that an owner may set for itself."""
LONGEST = 150
"""Characters of a setting."""


@dataclass(frozen=True)
class OwnData:
    """Where an owner's examples lie, and how they are read otherwise than the plan says.

    Attributes:
      path: a file, a folder or a dataset.
      settings: pairs `data.key=value`, for its own data alone. The server is told them.
    """

    path: str
    settings: tuple[str, ...] = ()

    @property
    def told(self) -> list[str]:
        """The settings in words; none where the data are read as the plan says."""
        return [f"its data are read with {pair}" for pair in self.settings]

    def source(self, own: Any) -> Any:
        """The source of the data: the plan's, `own`, at another path where it reads such a thing,
        else the usual one for it. A source that no short form stands for, such as `series`, reads
        any place unless its `reads` says otherwise.

        Nobody is measured on what a part of an owner's data would be held out for, so none is,
        unless the owner's settings say so. What lies there as a test split is not trained on.

        Raises:
          DataError: nothing is there.
          PlanError: a setting is none of the source's keys, or out of range.
        """
        place = locate(self.path)
        if place is None:
            raise DataError(f"there is no file or folder {self.path!r} here or in $FEDPEFT_DATA")
        usual = build("data", source(self.path, names("data")))
        found = replace(own, path=self.path) if _fits(own, usual, place) else usual
        if "test_fraction" in _keys(found):
            found = replace(found, test_fraction=0.0)
        if not self.settings:
            return found
        values = {"data": describe("data", found)}
        for pair in self.settings:
            set_key(values, pair)
        return build("data", values["data"], path="data")

    def examples(self, plan: Plan) -> Examples:
        """The owner's examples, with labels that number the plan's classes.

        Raises:
          DataError: they cannot be read, or have a label that the plan does not name.
        """
        own = replace(plan, data=self.source(plan.data))
        return in_order(own.examples(), plan.classes, self.path)


def _keys(source: Any) -> set[str]:
    return {f.name for f in fields(source)}


def _fits(own: Any, usual: Any, place: Path) -> bool:
    """Whether a plan's source reads what lies at a place."""
    if "path" not in _keys(own):
        return False
    reads: Callable[[Path], bool] = getattr(own, "reads", lambda place: True)
    return type(own) is type(usual) or (describe("data", own)["name"] not in FORMS and reads(place))


def own_data(path: str, settings: Sequence[str]) -> OwnData:
    """An owner's data with these settings.

    Raises:
      PlanError: a setting is not one of the data alone: the rest of a plan is the same for all.
    """
    for pair in settings:
        if not pair.strip().startswith(DATA) or pair.strip().startswith(("data.path", "data.name")):
            raise PlanError(
                f"--set {pair}: an owner may say how its own data are read, e.g. "
                "data.label=diagnosis, and nothing else; --data says where they lie"
            )
        if len(pair) > LONGEST or not pair.isprintable():
            raise PlanError(f"--set {pair!a}: the server gets it as one line of text")
    return OwnData(path, tuple(pair.strip() for pair in settings))


def split_settings(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of an owner's own data, and those of the plan."""
    own = [pair for pair in settings if pair.strip().startswith(DATA)]
    return own, [pair for pair in settings if pair not in own]
