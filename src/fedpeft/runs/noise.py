"""The noise of a private run, and what it is drawn from, as its folder keeps them."""

from fedpeft.core.secrets import Secret, secret_at
from fedpeft.errors import RunError
from fedpeft.plan.calibration import with_noise
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.runs.checkpoint import Checkpoint
from fedpeft.runs.folder import RunFolder
from fedpeft.storage.files import write_atomically


def write_noise(folder: RunFolder, plan: Plan) -> None:
    """Into the run's plan, where its target alone is there: another version of the library may
    calibrate otherwise."""
    if plan.privacy.target_epsilon is None:
        return
    written = read_plan(folder.plan)
    if written.private_part.noise_multiplier is None:
        noisy = with_noise(written, plan.private_part.noise_multiplier)
        write_atomically(folder.plan, noisy.toml().encode())


def open_secrets(folder: RunFolder, plan: Plan) -> tuple[Secret | None, Secret | None]:
    """The server's and the clients' of a private plan, made by the first call."""
    if plan.private_part is None:
        return None, None
    own, clients = map(secret_at, folder.secrets)
    return own, clients


def check_secrets(folder: RunFolder, saved: Checkpoint | None) -> None:
    """A run that goes on with another secret would give the same round two noises, and their mean
    has less."""
    if not saved or not saved.commitments:
        return
    for path, commitment in zip(folder.secrets, saved.commitments, strict=True):
        if not path.exists() or secret_at(path).commitment != commitment:
            raise RunError(
                f"{path} is not what this run's noise was drawn from: "
                "with another secret its guarantee would not hold. "
                "Put the file back, or begin a new run"
            )
