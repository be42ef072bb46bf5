"""One split of a Hugging Face dataset, and what its columns are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from torch import Tensor

from fedpeft.core.types import Table
from fedpeft.data.pictures import Pictures
from fedpeft.data.recordings import Clips, is_sound
from fedpeft.errors import DataError, unknown

PLAIN = ("string", "number", "class")
"""Kinds of columns that have one plain value a row."""
SOUNDS = ("audio", "string", "binary", "struct", "dict")
"""Kinds of columns that recordings may be read from."""
LISTS = ("list", "largelist", "sequence")
"""Kinds of columns that have a list a row: words and their tags, several labels."""
MIXED = "json"
"""The kind of a column of a JSON file that `datasets` cannot give one type."""
MIXED_TOLD = (
    "%s: the column %r is not read: its values are of several kinds, such as numbers and texts. "
    "Write them all in one"
)
CHAT = (("role", "content"), ("from", "value"))
"""What the two sides of a message are called."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a `datasets.Dataset`.

    Attributes:
      folder: what relative paths of pictures are relative to.
      path: how errors call the data.
    """

    dataset: Any
    folder: Path
    path: str

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def columns(self) -> list[str]:
        return list(self.dataset.column_names)

    def kind(self, name: str) -> str:
        """What a column holds: "image", "class", "string", "number", "binary", "chat" for lists of
        messages, or "list" and other nested things."""
        feature = self.dataset.features[name]
        if _is_chat(feature):
            return "chat"
        if type(feature).__name__ != "Value":
            return {"ClassLabel": "class"}.get(
                type(feature).__name__, type(feature).__name__.lower()
            )
        return next((kind for kind in ("string", "binary") if kind in feature.dtype), "number")

    def named(self, key: str, given: str, usual: Sequence[str], kinds: Sequence[str]) -> str:
        """The column `given` by the plan's `key`, or the first of the usual ones that is of these
        kinds, or "".

        Raises:
          DataError: there is no such column, or it is of another kind.
        """
        fitting = [name for name in self.columns if self.kind(name) in kinds]
        if not given:
            exact = [name for name in usual if name in fitting]
            alike = [name for word in usual for name in fitting if name.lower() == word]
            return next(iter([*exact, *alike]), "")
        if given not in self.columns:
            raise DataError(f"{self.path}: data.{key}: " + unknown("column", given, self.columns))
        if given not in fitting:
            raise DataError(
                f"{self.path}: data.{key} = {given!r} is a column of the kind "
                f"{self.kind(given)!r}, "
                f"which must be one of: {', '.join(kinds)}"
            )
        return given

    def sound(self, given: str) -> str:
        """The column of recordings: the one that the plan names, one by its type, or one called
        `audio` with paths that end as those of recordings do; "" for none."""
        if given:
            return self.named("audio", given, (), SOUNDS)
        declared = [name for name in self.columns if self.kind(name) == "audio"]
        if declared or "audio" not in self.columns or self.kind("audio") != "string":
            return next(iter(declared), "")
        first = next((value for value in self.values("audio") if value), "")
        return "audio" if is_sound(first) else ""

    def class_names(self, name: str) -> list[str]:
        """The names that a class column declares, in the order of their ids."""
        return list(self.dataset.features[name].names) if self.kind(name) == "class" else []

    def values(self, name: str) -> list[Any]:
        """Plain values; of a class its name; None where there is none: a gap, an empty text, a
        hidden label's -1."""
        values: list[Any] = self._arrow(name).to_pylist()
        if names := self.class_names(name):
            return [names[v] if v is not None and 0 <= v < len(names) else None for v in values]
        return [None if v != v or v == "" else v for v in values]

    def table(self, names: Mapping[str, str], index: Tensor, label: Tensor | None) -> Table:
        """The rows `index`: `label` if any, the columns that are called otherwise here, all other
        columns of plain values and of lists, and those of lists of messages. Beside recordings the
        column of texts keeps its name too, since it may be the transcripts'.

        Raises:
          DataError: a column is not there, or a text is missing.
        """
        for name in names.values():
            if name and name not in self.columns:
                raise DataError(f"{self.path}: " + unknown("column", name, self.columns))
        places = index.tolist()
        columns: dict[str, Any] = {} if label is None else {"label": label}
        columns |= self._decoded(names, places)
        if names["text"]:
            columns["text"] = self._texts(names, places)
        taken = {*columns, *_renamed(names)}
        for name in self.columns:
            if name not in taken and self.kind(name) in (*PLAIN, *LISTS, "chat"):
                values = self.values(name)
                columns[name] = [values[place] for place in places]
        return Table(columns)

    def _decoded(
        self, names: Mapping[str, str], places: Sequence[int]
    ) -> dict[str, Pictures | Clips]:
        """The columns of pictures and of recordings."""
        kinds = {"image": Pictures, "mask": Pictures, "audio": Clips}
        return {
            key: kind(self._arrow(names[key]), places, self.folder)
            for key, kind in kinds.items()
            if names[key]
        }

    def _texts(self, names: Mapping[str, str], places: Sequence[int]) -> list[str | None]:
        name = names["text"]
        values = self._arrow(name).to_pylist()
        texts = [values[place] for place in places]
        missing = sum(text is None for text in texts)
        # a task that reads recordings leaves out those without a transcript
        if missing and not names["audio"]:
            raise DataError(
                f"{missing} of {len(texts)} examples of {self.path} have no {name!r}: "
                f"leave them out with data.where = \"{name} != ''\""
            )
        return texts

    def _arrow(self, name: str) -> Any:
        return self.dataset.with_format("arrow")[:].column(name)


def tell_mixed(splits: Iterable[Rows]) -> None:
    """Say which columns are not read, as no task can know what their values are."""
    found = ((one.path, name) for one in splits for name in one.columns if one.kind(name) == MIXED)
    for path, name in dict.fromkeys(found):
        getLogger("fedpeft").warning(MIXED_TOLD, path, name)


def _renamed(names: Mapping[str, str]) -> set[str]:
    """The columns that lose their own names."""
    return {name for key, name in names.items() if key != "text" or not names["audio"]}


def _is_chat(feature: Any) -> bool:
    """Whether a column holds lists of messages: a role and a content each, however they are
    called."""
    inner = getattr(feature, "feature", None)
    return isinstance(inner, Mapping) and any(
        {role, content} <= set(inner) for role, content in CHAT
    )
