"""What `fedpeft contribute` says of the file that it wrote."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from fedpeft.core.units import say_epsilon, size

if TYPE_CHECKING:
    from fedpeft.oneshot.contribution_header import Header
    from fedpeft.oneshot.releases import Release


def describe_file(header: "Header", content: bytes, of: str) -> str:
    """How large the file is, and whose it is.

    Args:
      of: how many examples of whom, which the file itself need not tell.
    """
    signed = "signed" if header.signer else "unsigned"
    return f"{size(len(content))} from {of}, {signed}"


def describe_guarantees(header: "Header", every: "Sequence[Release]") -> Iterator[str]:
    """What the file guarantees, and what it does together with those made before."""
    from fedpeft.oneshot.releases import words

    if header.privacy:
        yield f"privacy: {', '.join(_entries(header.privacy))}"
    if len(every) > 1:
        yield f"with the {len(every) - 1} made before: {words(every)}, if all are sent"


def _entries(privacy: Mapping[str, float | str | None]) -> Iterator[str]:
    for word, value in privacy.items():
        if word == "epsilon":
            assert not isinstance(value, str)
            yield f"{word} {say_epsilon(value)}"
        else:
            yield f"{word} {value:g}" if isinstance(value, float) else f"{word} {value}"
