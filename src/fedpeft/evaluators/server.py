"""The server measures its model on the held-out examples that it has itself."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class ServerEvaluation:
    """The common held-out examples are measured where the server is; nobody is asked."""

    at_server: ClassVar[bool] = True
