"""A package of somebody else's: an algorithm with a message, a memory, a view and a server step."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedpeft.core.conversation import Answer, Ask, Flow, Message
from fedpeft.core.hooks import Handler, Inner
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, State
from fedpeft.core.views import View

CENTRE: Layout = [("sum", [8], "float32"), ("examples", [], "float32"), ("calls", [], "float32")]


@dataclass(frozen=True)
class Drift:
    """After each round clients tell the mean of their points, and the server keeps it.

    Each client counts, in a memory of its own, how often it was asked. In odd rounds biases stand
    still.

    Attributes:
      folder: while a file `die-fit` or `die-drift` is in it, the server's process is killed after
        that message of a round, and the file is taken away.
    """

    folder: str = ""
    remembers_clients: ClassVar[bool] = True

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        after = yield from inner(state, round)
        self._die("fit")
        message = Message({"centre": self._centre(state)}, {"round": state.round})
        asked = dict.fromkeys(round.cohort, message)
        answers = yield Ask("drift", asked, lambda _: {"drift": CENTRE})
        state = self._kept(after, answers)
        self._die("drift")
        return state

    def handlers(self) -> Mapping[str, Handler]:
        return {"drift": self._answer}

    def receives(self, phase: str, fit: Mapping[str, Layout]) -> Mapping[str, Layout]:
        return {"centre": [("centre", [8], "float32")]}

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        return View(trains=(("!*.bias",),)) if round % 2 else View()

    def _die(self, phase: str) -> None:
        file = Path(self.folder or "/nowhere") / f"die-{phase}"
        if file.exists():
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def _answer(self, client: Any, message: Message) -> Message:
        calls = client.recall("drift").get("calls", torch.zeros(())) + 1
        client.remember("drift", {"calls": calls})
        points = torch.cat([b["point"] for b in client.site.data.training(client.name)])
        away = (points - message.tensors["centre"]["centre"]).sum(0)
        told = {"sum": away, "examples": torch.tensor(float(len(points))), "calls": calls}
        return Message({"drift": told})

    def _centre(self, state: State) -> dict[str, Tensor]:
        held = state.memory.get("drift", {})
        return {"centre": held.get("centre", torch.zeros(8))}

    def _kept(self, state: State, answers: Iterator[Answer]) -> State:
        total, examples, calls = torch.zeros(8), 0.0, 0.0
        for answer in answers:
            told = answer.message.tensors["drift"]
            total, examples = total + told["sum"], examples + float(told["examples"])
            calls += float(told["calls"])
        moved = self._centre(state)["centre"] + total / max(examples, 1.0)
        known = float(state.memory.get("drift", {}).get("calls", torch.zeros(())))
        own = {"centre": moved, "calls": torch.tensor(known + calls)}
        return replace(state, memory={**state.memory, "drift": own})


@dataclass(frozen=True)
class Shrink:
    """θ ← (1 − rate)·θ after the server's step."""

    rate: float = 0.1

    def step(self, after: State, before: State, round: Round) -> State:
        params = {name: x * (1 - self.rate) for name, x in after.params.items()}
        return replace(after, params=params)


@dataclass(frozen=True)
class LeastAsked:
    """It draws those who were asked least often, by a count that it keeps."""

    def choose(
        self,
        clients: Sequence[ClientId],
        cohort: int,
        generator: torch.Generator,
        round: int,
        memory: Mapping[str, Tensor],
    ) -> list[ClientId]:
        asked = {c: float(memory.get(c, torch.zeros(()))) for c in clients}
        return sorted(clients, key=lambda c: (asked[c], c))[:cohort]

    def learn(self, memory: Mapping[str, Tensor], ledger: Any) -> dict[str, Tensor]:
        one = torch.ones(())
        return {**memory, **{c: memory.get(c, torch.zeros(())) + one for c in ledger.weights}}

    def most(self, rounds: int, cohort: int, clients: int) -> int:
        return -(-rounds * cohort // clients)
