"""A study of four clients, their files, and ways to spoil one; what the tests of contributions
share."""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from running import PLAN

from fedpeft.core.tensors import layout
from fedpeft.core.types import Update
from fedpeft.oneshot import merge as merging
from fedpeft.oneshot.contribute import contribute, from_partition
from fedpeft.oneshot.contribution import Contribution, read_contribution, write_contribution
from fedpeft.oneshot.invitation import Invitation, invite, read_invitation, server_key
from fedpeft.oneshot.keys import Trust, make_signing_key, sealing_key, signing_key
from fedpeft.plan.reading import read_plan
from fedpeft.registry import Code
from fedpeft.storage.files import load_tensors
from fedpeft.wire.payloads import pack, unpack

PARTS = Code.of(["parts"])
merge, change = partial(merging.merge, code=PARTS), partial(merging.change, code=PARTS)
ONE_ROUND = ["rounds=1", "cohort=4", "local.epochs=3"]


@dataclass(frozen=True)
class Study:
    """An invitation, and the file of each client of its plan, signed.

    Attributes:
      trusted: the public keys, a line each.
    """

    path: Path
    files: tuple[Path, ...]
    keys: tuple[Path, ...]
    trusted: Path

    @property
    def invitation(self) -> Invitation:
        return read_invitation(self.path, PARTS)

    def read(self, file: Path, trust: Trust | None = None) -> Contribution:
        return read_contribution(
            file, self.invitation, sealing_key(server_key(self.path)), trust or Trust()
        )

    def update(self, file: Path) -> Update:
        """What is in a file."""
        one, study = self.read(file), self.invitation
        return unpack(one.header.client, one.frame, study.plan.uplink, layout(study.state.params))

    def forged(
        self, out: Path, spoil: Callable[[Update], Update], number: int = 0, **header: Any
    ) -> Path:
        """The file of a client that sends something else, properly signed and sealed."""
        one, study = self.read(self.files[number]), self.invitation
        frame = pack(spoil(self.update(self.files[number])), study.plan.uplink)
        said = replace(one.header, **{"bytes": len(frame), **header})
        out.write_bytes(
            write_contribution(said, frame, study.terms.server, signing_key(self.keys[number]))
        )
        return out


def study(root: Path, *settings: str) -> Study:
    path = root / "study"
    invite(read_plan(PLAN, [*ONE_ROUND, *settings]), path)
    given, files, keys = read_invitation(path, PARTS), [], []
    for number in range(4):
        who = from_partition(given, number)
        private, _ = make_signing_key(who.client, root)
        files.append(root / f"{who.client}.safetensors")
        files[-1].write_bytes(contribute(given, who, signing_key(private), lambda: None)[1])
        keys.append(private)
    trusted = root / "trusted"
    trusted.write_text("".join(key.with_suffix(".pub").read_text() for key in keys))
    return Study(path, tuple(files), tuple(keys), trusted)


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the lock and for what tells of time."""
    return {
        str(file.relative_to(path)): _content(file)
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in (".lock", "rounds.jsonl", "summary.json")
    }


def _content(file: Path) -> bytes:
    """The bytes; of a checkpoint, whose metadata are in an order of chance, what it holds."""
    if file.name != "state.safetensors":
        return file.read_bytes()
    tensors, metadata = load_tensors(file)
    held = {name: (str(x.dtype), x.tolist()) for name, x in tensors.items()}
    return json.dumps(
        [held, {name: x for name, x in metadata.items() if name != "commitments"}], sort_keys=True
    ).encode()


def killed_before(
    moment: int, watched: str, events: tuple[str, ...], work: Callable[[], object]
) -> int:
    """Do the work in a copy of this process that dies before its event number `moment` on a file
    named `watched`."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in events or watched not in str(arguments[0]):
            return
        if event == "open" and not (
            isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            return
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    code = 1
    try:
        sys.addaudithook(hook)
        work()
        code = 0
    finally:
        os._exit(code)


def own_data(path: Path, labels: str) -> Path:
    """Points around a corner of a triangle for each label."""
    corner = {"a": (5.0, 0.0), "b": (-5.0, 0.0), "c": (0.0, 5.0), "z": (0.0, -5.0)}
    y = np.array([labels[k % len(labels)] for k in range(60)])
    x = (
        np.array([corner[name] for name in y], dtype=np.float32)
        + np.arange(60, dtype=np.float32)[:, None] / 100
    )
    np.savez(path, x_train=x, y_train=y)
    return path
