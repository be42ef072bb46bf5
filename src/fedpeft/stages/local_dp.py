"""Local differential privacy: noise on what a client sends (Kasiviswanathan et al., 2008,
arXiv:0803.0924)."""

from dataclasses import dataclass, replace

from fedpeft.core.accounting import check_noise
from fedpeft.core.types import Cohort, Context, Event, Tensors, Update
from fedpeft.stages.client_dp import limit_update


@dataclass(frozen=True)
class LocalDp:
    """Δ = clip(Δₖ, C) + N(0, (z·C)²), on the client and from its own entropy: no server need be
    trusted.

    Any two updates must look alike to the server, and two vectors of length C lie up to 2C apart:
    as a mechanism this has the noise multiplier z / 2. The mean over m clients has noise of z·C/√m,
    not of z·C/m.

    Attributes:
      clip_norm: C.
      noise_multiplier: z; left out, it follows from the plan's `target_epsilon`.

    Raises:
      ValueError: a value out of range.
    """

    clip_norm: float = 1.0
    noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        check_noise(self.clip_norm, self.noise_multiplier)

    @property
    def remembers(self) -> bool:
        return False

    @property
    def event(self) -> Event | None:
        return Event("client", None if self.noise_multiplier is None else self.noise_multiplier / 2)

    def on_client(
        self, update: Update, memory: Tensors, context: Context
    ) -> tuple[Update, Tensors]:
        assert context.secret is not None and self.noise_multiplier is not None
        update = limit_update(update, self.clip_norm)
        std = self.noise_multiplier * self.clip_norm if self.noise_multiplier else 0.0
        secret = context.secret.at("local_dp")
        noisy = {
            n: (x.double() + secret.at(n).normal(x.shape) * std).to(x.dtype)
            for n, x in update.delta.items()
        }
        return replace(update, delta=noisy), {}

    def on_arrival(self, update: Update) -> Update:
        return replace(update, weight=1.0, metrics={})

    def on_server(self, update: Update, cohort: Cohort) -> Update:
        return update
