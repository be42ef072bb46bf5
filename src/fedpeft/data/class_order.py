"""Examples whose labels number the classes of a plan."""

import torch

from fedpeft.core.types import Examples, Table
from fedpeft.errors import DataError, unknown


def in_order(examples: Examples, classes: tuple[str, ...], path: str) -> Examples:
    """The same examples with labels that number `classes`; without labels where these are none.

    Raises:
      DataError: they have a class that is none of these.
    """
    sides = (examples.train, examples.test)
    if not classes:
        train, test = map(_without_labels, sides)
        return Examples(train, test, (), examples.left_out)
    seen = {int(label) for side in sides for label in _labels(side)}
    for number, name in enumerate(examples.classes):
        if number in seen and name not in classes:
            raise DataError(
                f"{path}: the study does not have that label: {unknown('label', name, classes)}"
            )
    # a class of which there are no examples may be called as it likes
    places = [classes.index(name) if name in classes else -1 for name in examples.classes]
    order = torch.tensor(places)

    def side(table: Table) -> Table:
        if table.labels is None:
            return table
        return Table({**table.columns, "label": order[table.labels]})

    return Examples(side(examples.train), side(examples.test), classes, examples.left_out)


def _without_labels(table: Table) -> Table:
    if table.labels is None:
        return table
    return Table({name: x for name, x in table.columns.items() if name != "label"})


def _labels(table: Table) -> list[int]:
    return [] if table.labels is None else list(map(int, table.labels))
