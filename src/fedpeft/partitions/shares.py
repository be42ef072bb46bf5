"""The share of each client's examples that it holds out: a key of every partition.

`data.divide` sets these examples apart, from what the partition gives to the client.
"""


def check_share(held_out: float | None) -> None:
    """Raises ValueError for a share that leaves nothing to train on, or is none."""
    if held_out is not None and not 0 <= held_out < 1:
        raise ValueError(
            "held_out is the share of each client's examples on which the client is measured "
            f"instead of training on them, at least 0 and below 1, got {held_out}"
        )
