"""The server's state on disk: one safetensors file, replaced whole after each round."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.core.tensors import add_prefix, split_prefixes, take_prefix
from fedpeft.core.types import State
from fedpeft.errors import RunError
from fedpeft.plan.plan import Plan
from fedpeft.storage.files import dump_tensors, load_tensors

FORMAT = "fedpeft-state-2"


@dataclass(frozen=True)
class Checkpoint:
    """A state and where it was computed.

    Attributes:
      privacy: what the rounds have cost so far; None where nothing is private.
      commitments: by which the server's and the clients' secrets are known again.
    """

    state: State
    environment: Mapping[str, Any]
    privacy: Mapping[str, Any] | None = None
    commitments: Sequence[str] = ()


def save_checkpoint(
    path: Path,
    plan: Plan,
    state: State,
    environment: Mapping[str, Any],
    privacy: Mapping[str, Any] | None = None,
    commitments: Sequence[str] = (),
) -> None:
    """Replace the checkpoint. A kill leaves the old one or the new one."""
    tensors = add_prefix("params", state.params)
    for kind, owners in (("shared", state.shared), ("memory", state.memory)):
        for owner, own in owners.items():
            tensors |= add_prefix(f"{kind}/{owner}", own)
    metadata = {
        "format": FORMAT,
        # Safetensors sorts; sums over tensors and deflated headers depend on it.
        "order": json.dumps(list(tensors)),
        "plan": plan.fingerprint,
        "round": str(state.round),
        "accepted": json.dumps(dict(state.accepted)),
        "norms": json.dumps(state.norms),
        "weights": json.dumps(state.weights),
        "refusals": json.dumps(dict(state.refusals)),
        "environment": json.dumps(dict(environment)),
    }
    if privacy:
        metadata["privacy"] = json.dumps(dict(privacy))
        metadata["commitments"] = json.dumps(list(commitments))
    path.parent.mkdir(exist_ok=True)
    dump_tensors(path, tensors, metadata)


def load_checkpoint(path: Path, plan: Plan) -> Checkpoint | None:
    """The checkpoint at `path`, or None before the first.

    Raises:
      RunError: it is damaged, or of another plan.
    """
    if not path.exists():
        return None
    try:
        tensors, metadata = load_tensors(path)
        if metadata.get("format") != FORMAT:
            raise RunError(
                f"{path} is a checkpoint of the kind {metadata.get('format')!r}, and this fedpeft "
                f"reads {FORMAT!r}: begin a new run"
            )
        tensors = {name: tensors[name] for name in json.loads(metadata["order"])}
        accepted, refusals = (_counts(metadata.get(key, "{}")) for key in ("accepted", "refusals"))
        norms, weights = (
            tuple(map(float, json.loads(metadata.get(key, "[]")))) for key in ("norms", "weights")
        )
        shared, memory = (
            split_prefixes(take_prefix(kind, tensors)) for kind in ("shared", "memory")
        )
        params, round = take_prefix("params", tensors), int(metadata["round"])
        state = State(round, params, shared, memory, accepted, norms, refusals, weights)
        environment = json.loads(metadata["environment"])
        privacy = json.loads(metadata.get("privacy", "null"))
        commitments = json.loads(metadata.get("commitments", "[]"))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if metadata.get("plan") != plan.fingerprint:
        raise RunError(f"{path} belongs to another plan: plan.toml was changed after the run began")
    return Checkpoint(state, environment, privacy, commitments)


def _counts(text: str) -> dict[str, int]:
    """By client a round, or how many."""
    return {str(client): int(count) for client, count in json.loads(text).items()}
