"""What can go wrong, by who can mend it.

    FedpeftError
    ├── PlanError    the plan: an unknown key or name, a value out of range, parts that do not fit
    │                together
    ├── DataError    the data: unreadable, without labels, a client with nothing, a partition that
    │                cannot be drawn
    ├── WireError    a payload: truncated, corrupt, of another shape than the plan's
    └── RunError     a run folder: not one, of another plan, unfinished

Each is raised where the bad thing enters, once; the command line prints its one line and exits with
2.
"""

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, requires


class FedpeftError(Exception):
    """The root of the errors that say what came, what is allowed and what to do.

    >>> from fedpeft import read_plan
    >>> try:
    ...     read_plan("roundz = 3")
    ... except FedpeftError as error:
    ...     print(str(error).partition(" Known:")[0])
    the plan: no key called 'roundz'. Did you mean 'rounds'?
    """


class PlanError(FedpeftError):
    """The plan does not describe an experiment."""


class DataError(FedpeftError):
    """The data cannot be used as the plan says."""


class WireError(FedpeftError):
    """A payload is not what an honest peer with the same plan sends."""


class RunError(FedpeftError):
    """A run folder cannot be used as asked."""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the system's errors that are gone once there is room on the disk."""

WORDY = (FedpeftError, ArithmeticError, ValueError, RuntimeError, OSError, MemoryError)
"""Errors whose own words are a sentence, as a rule."""


def reason_of(error: BaseException) -> str:
    """What an error says, on one line; of kinds that say little, such as a missing key, and of
    those without words, the kind too."""
    said = " ".join(str(error).split())
    if said and isinstance(error, WORDY):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def unknown(what: str, got: str, known: Iterable[str]) -> str:
    """One sentence for a name that is not known: the nearest one first, then all of them."""
    names = sorted(known)
    nearest = get_close_matches(got, names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"no {what} called {got!r}.{hint} Known: {', '.join(names) or 'none'}."


def explain_install(extra: str) -> str:
    """The command that installs an extra of fedpeft, or some with commas between, and the one for
    its packages alone, for those who have fedpeft from a checkout or a wheel, which no registry
    knows."""
    try:
        every = requires("fedpeft") or []
    except PackageNotFoundError:  # run from a folder, without being installed
        every = []
    pairs = [one.partition(";") for one in every]
    marks = {f"extra == {quote}{one}{quote}" for one in extra.split(",") for quote in "'\""}
    packages = [f"'{name.strip()}'" for name, _, marker in pairs if marker.strip() in marks]
    alone = f", or its packages alone: pip install {' '.join(packages)}" if packages else ""
    return f"pip install 'fedpeft[{extra}]'{alone}"


OF_ONE = {
    **{"are": "is", "have": "has", "do": "does", "were": "was"},
    **{"show": "shows", "differ": "differs", "lack": "lacks"},
}


def say_count(count: int, things: str) -> str:
    """How many there are, in words: `3 pictures that are empty`, and `1 picture that is empty`.

    Of one thing, the first word of `things` that ends with an s is put into the singular, and the
    first verb after it.
    """
    if count != 1:
        return f"{count:,} {things}"
    words = things.split(" ")
    noun = next((at for at, word in enumerate(words) if word.endswith("s")), 0)
    words[noun] = _singular(words[noun])
    for at in range(noun + 1, len(words)):
        if words[at] in OF_ONE:
            words[at] = OF_ONE[words[at]]
            break
    return " ".join(["1", *words])


def _singular(noun: str) -> str:
    if noun == "series":  # the same in both
        return noun
    if noun.endswith("ies"):
        return noun.removesuffix("ies") + "y"
    if noun.endswith(("sses", "xes", "ches")):
        return noun.removesuffix("es")
    return noun.removesuffix("s")
