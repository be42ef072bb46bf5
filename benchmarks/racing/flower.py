"""Flower's simulation: message-based apps and its `FedAvg`, clients in Ray actors of one processor
each.

In its favour: the model is built once an actor, not once a message as in its examples; only trained
tensors travel; the data lie on the disk beside each actor.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

from benchmarks.racing.course import Course, Track, trained, write

client_app = ClientApp()


@cache
def kept(folder: str) -> tuple[Course, nn.Module]:
    """What an actor holds from message to message."""
    torch.set_num_threads(1)
    course = Course(Path(folder))
    return course, course.model()


@client_app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    course, model = kept(str(config["folder"]))
    write(model, message.content["arrays"].to_torch_state_dict())
    course.train(model, int(config["round"]), str(config["client"]))
    size = len(course.rounds[int(config["round"])][str(config["client"])])
    content = {"arrays": arrays(model), "metrics": MetricRecord({"num-examples": size})}
    return Message(RecordDict(content), reply_to=message)


def arrays(model: nn.Module) -> ArrayRecord:
    return ArrayRecord(OrderedDict((name, x.detach()) for name, x in trained(model).items()))


class Finished(Exception):
    """No further round is asked for."""


class Timed(FedAvg):  # type: ignore[misc]
    """Its rounds with the clients and the clock of the race; which node plays which client is no
    matter."""

    def __init__(self, course: Course, track: Track) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.course = course
        self.track = track

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Any:
        if not self.track.go():
            raise Finished
        clients = self.course.rounds[self.track.at]
        nodes = list(grid.get_node_ids())[: len(clients)]
        for node, client in zip(nodes, clients, strict=True):
            told = ConfigRecord(
                {"folder": str(self.course.folder), "round": self.track.at, "client": client}
            )
            content = RecordDict({"arrays": arrays, "config": told})
            yield Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        if failed := [reply.error.reason for reply in replies if reply.has_error()]:
            raise RuntimeError(f"{len(failed)} clients failed: {failed[0]}")
        means, metrics = super().aggregate_train(server_round, replies)
        self.last = means
        self.track.done()
        return means, metrics


def run(course: Course, track: Track) -> None:
    server_app = ServerApp()

    @server_app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        strategy = Timed(course, track)
        try:
            strategy.start(
                grid=grid, initial_arrays=arrays(course.model()), num_rounds=len(course.rounds) + 1
            )
        except Finished:
            track.end(strategy.last.to_torch_state_dict())

    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    resources = {
        "init_args": {"num_cpus": processors},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(server_app, client_app, course.settings["clients"], "ray", resources)
