"""Runs as Weights & Biases keeps them: at its server, or in a folder to be synchronised later."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedpeft.core.tracking import RunLabel, require_library

MODES = ("online", "offline")
SETTINGS: Mapping[str, Any] = {
    # The library fills these in with the machine's name and with paths where they are empty.
    "host": "-",
    "program": "fedpeft",
    "program_relpath": "fedpeft",
    "program_abspath": "",
    # It would tell processor, memory, packages, the command line and the state of a repository.
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "disable_git": True,
    "save_code": False,
    "disable_code": True,
    # What a run prints has clients' names in it.
    "console": "off",
    "silent": True,
    # Without a bound these wait for a network, or for a user who is not there to type a key.
    "login_timeout": 30,
    "init_timeout": 30,
    "finish_timeout": 30,
}
REPORTING = "WANDB_ERROR_REPORTING"
"""Errors of the library would be told to its makers, with a traceback."""


@dataclass(frozen=True)
class WeightsAndBiases:
    """Runs of one project; keys and servers are the library's own (`wandb login`, WANDB_BASE_URL).

    Attributes:
      project: the project of Weights & Biases.
      mode: "online", "offline" for a folder that `wandb sync` sends later, or left out for what
        WANDB_MODE says.
      place: the folder for the library's files; left out, the present one.
    """

    project: str = "fedpeft"
    mode: str = ""
    place: str = ""

    def __post_init__(self) -> None:
        if self.mode and self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")

    def require(self) -> None:
        _switch()
        require_library("wandb", "wandb", "runs in Weights & Biases")

    def follow(self, run: RunLabel) -> "WandbRun":
        _switch()
        import wandb

        # Releases differ in their settings, and an unknown one is an error.
        known = {key: x for key, x in SETTINGS.items() if key in wandb.Settings.model_fields}
        opened = wandb.init(
            project=self.project,
            id=run.identity,
            name=run.name,
            config=dict(run.settings),
            dir=self.place or None,
            mode=self.mode or None,
            resume="allow",
            reinit="create_new",  # several runs are followed at once
            settings=wandb.Settings(**known),
        )
        # The step that comes next at the server. Offline nothing is known of what came before: such
        # a file has all rounds, and the server takes those that it lacks.
        return WandbRun(opened, max(0, opened.starting_step - 1))


@dataclass(frozen=True)
class WandbRun:
    """One run of Weights & Biases.

    Attributes:
      opened: the library's run.
      done: the last round that the server had when it was opened.
    """

    opened: Any
    done: int

    def write(self, round: int, values: Mapping[str, float]) -> None:
        self.opened.log(dict(values), step=round)

    def close(self, finished: bool) -> None:
        # The library knows "finished" and "failed" alone. Followed again, the run goes on.
        self.opened.finish(exit_code=0 if finished else 1)


def _switch() -> None:
    os.environ.setdefault(REPORTING, "false")
