"""The tables of a plan: settings that belong together and choose no part."""

from dataclasses import dataclass

from fedpeft.compute.frozen_linear import BASE_DTYPES
from fedpeft.core.accounting import ACCOUNTANTS
from fedpeft.errors import unknown
from fedpeft.registry import unwritten


@dataclass(frozen=True)
class Privacy:
    """`[privacy]`: the guarantee after all rounds.

    Attributes:
      target_epsilon, delta: ε and δ, from which a private part's noise_multiplier follows.
      accountant: "pld" or "rdp".
    """

    target_epsilon: float | None = None
    delta: float | None = None
    accountant: str = "pld"

    def __post_init__(self) -> None:
        if self.accountant not in ACCOUNTANTS:
            raise ValueError(unknown("accountant", self.accountant, ACCOUNTANTS))


@dataclass(frozen=True)
class AdmissionRules:
    """`[admission]`: what is asked of updates.

    Attributes:
      min_replies: with fewer good replies a round changes nothing.
      norm_factor: an update may be so many times as long as the median of the last ones, and as
        long as what it changes whatever they were; infinity for any length. Where most of a round
        are longer than that, and all or five of them at least, they are what is usual from then on.
        Left out: 100, or infinity where a guarantee for clients bounds the length, or secure
        aggregation hides it.
      max_refusals: a client of which so many updates were refused is asked no more.
      weight_factor: where weights are claims, as numbers of examples are, an update may count so
        many times as much as the median of the last ones. In simulations the sizes are known, and
        nothing is claimed.
    """

    min_replies: int = 1
    norm_factor: float | None = None
    max_refusals: int = 3
    weight_factor: float = 1000.0

    def __post_init__(self) -> None:
        for key in ("min_replies", "max_refusals"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.norm_factor is not None and not self.norm_factor >= 1:
            raise ValueError(f"norm_factor must be at least 1, got {self.norm_factor}")
        if not self.weight_factor >= 1:
            raise ValueError(f"weight_factor must be at least 1, got {self.weight_factor}")


@dataclass(frozen=True)
class Compute:
    """`[compute]`: how numbers are computed; the last bits of a result depend on it.

    Attributes:
      threads: of one worker.
      base_dtype: of the products with frozen weights: "float32" or "bfloat16". What is trained is
        float32.
      pack: whether frozen weights are laid out for the processor's matrix kernels where these are
        faster (AVX-512; in float32 not Intel's): for once or twice their memory.
      features: whether what a frozen beginning of the model makes of an example is computed once
        and kept in a file.
      checkpointing: whether a training step keeps of a model's blocks their inputs alone, and
        computes the rest again on the backward pass (Chen et al., 2016, arXiv:1604.06174).
      micro_batch: examples whose gradient is taken at a time; a step is still that of its whole
        batch. 0 takes the whole batch at once.
    """

    threads: int = 1
    base_dtype: str = "float32"
    pack: bool = True
    features: bool = True
    checkpointing: bool = unwritten(False)
    micro_batch: int = unwritten(0)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.base_dtype not in BASE_DTYPES:
            raise ValueError(unknown("base_dtype", self.base_dtype, BASE_DTYPES))
        if self.micro_batch < 0:
            raise ValueError(
                f"micro_batch must be at least 1, or 0 for whole batches, got {self.micro_batch}"
            )


@dataclass(frozen=True)
class Nodes:
    """`[nodes]`: whose data lie with them; simulations do not use this table.

    Attributes:
      names: of the nodes; left out, the clients are those of the plan's own partition.
      deadline: the seconds that a round waits for them.
    """

    names: tuple[str, ...] | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        names = self.names
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ValueError(f"names must be those of the nodes, each once, got {list(names)}")
        if self.deadline is not None and not 0 < self.deadline < float("inf"):
            raise ValueError(f"deadline must be a positive number of seconds, got {self.deadline}")
