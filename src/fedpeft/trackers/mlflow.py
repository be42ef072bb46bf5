"""Runs as MLflow keeps them: in a folder, or at a tracking server."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.core.tracking import RunLabel, require_library

SWITCHES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing is told to MLflow's makers
    # MLflow 3 keeps runs in a folder only where it is asked to; its databases need more libraries.
    "MLFLOW_ALLOW_FILE_STORE": "true",
    # Its own patience is seven tries of two minutes each, for which a run would stand still.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""The library reads these from the environment alone. What the user has set there stays."""
IDENTITY = "fedpeft.run"
"""The tag by which a run is found again."""
ROUND = "round/number"
"""A metric that every round has, so that it tells how far a run is."""
BATCH = 100
"""The most parameters that MLflow takes in one call."""


@dataclass(frozen=True)
class MLflow:
    """MLflow's runs, which a later start finds again and goes on with.

    Attributes:
      place: a folder, or the address of a tracking server; left out, MLFLOW_TRACKING_URI or the
        folder `mlruns`.
      experiment: the experiment of MLflow's that the runs belong to.
    """

    place: str = ""
    experiment: str = "fedpeft"

    def require(self) -> None:
        _switch()
        require_library("mlflow", "mlflow", "runs in MLflow")

    def follow(self, run: RunLabel) -> "MLflowRun":
        _switch()
        from mlflow import MlflowClient

        # The client's own calls add no tag. `mlflow.start_run` would add the user's name and the
        # path of the script.
        client = MlflowClient(self.place or os.environ.get("MLFLOW_TRACKING_URI", "mlruns"))
        known = client.get_experiment_by_name(self.experiment)
        experiment = known.experiment_id if known else client.create_experiment(self.experiment)
        same = f"tags.`{IDENTITY}` = '{run.identity}'"
        if found := client.search_runs([experiment], filter_string=same, max_results=1):
            [again] = found
            return MLflowRun(client, again.info.run_id, int(again.data.metrics.get(ROUND, 0)))
        tags = {IDENTITY: run.identity}
        new = client.create_run(experiment, tags=tags, run_name=Path(run.name).name)
        _tell_settings(client, new.info.run_id, run.settings)
        return MLflowRun(client, new.info.run_id, 0)


@dataclass(frozen=True)
class MLflowRun:
    """One run of MLflow's.

    Attributes:
      done: the last round that it had when it was opened.
    """

    client: Any
    run: str
    done: int

    def write(self, round: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        at = get_current_time_millis()
        told = [Metric(name, value, at, round) for name, value in values.items()]
        # One call for all of a round. The number comes last: it says that the round is whole.
        self.client.log_batch(self.run, metrics=[*told, Metric(ROUND, round, at, round)])

    def close(self, finished: bool) -> None:
        # A run that is merely followed no longer may go on, and "killed" would be untrue.
        if finished:
            self.client.set_terminated(self.run, "FINISHED")


def _switch() -> None:
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


def _tell_settings(client: Any, run: str, settings: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    told = [Param(name, str(value)) for name, value in settings.items()]
    for start in range(0, len(told), BATCH):
        client.log_batch(run, params=told[start : start + BATCH])
