"""Names for clients that have none."""

from fedpeft.core.types import ClientId


def client_names(count: int) -> list[ClientId]:
    """c000, c001, ...: as wide as needed, so that the order of names is the order of numbers."""
    width = max(3, len(str(count - 1)))
    return [f"c{k:0{width}d}" for k in range(count)]
