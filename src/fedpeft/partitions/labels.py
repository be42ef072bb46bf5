"""What the partitions that divide by labels ask of the data."""

from torch import Tensor

from fedpeft.core.types import Table
from fedpeft.errors import DataError


def labels_of(table: Table, partition: str) -> Tensor:
    """The labels (n,).

    Raises:
      DataError: there are none.
    """
    labels = table.labels
    if labels is None:
        raise DataError(
            f"the partition {partition!r} divides by labels, and these data have none: "
            'take "column" (natural clients) or "iid", or name a column of classes with data.label'
        )
    return labels
