"""What a run's folder keeps, as plain values; what an older version did not write has a default."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AllowInfNan, StringConstraints

Finite = Annotated[float, AllowInfNan(False)]
WebP = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]+=*$", max_length=2**19)]
"""A picture as base64."""


@dataclass(frozen=True)
class KeptClient:
    """What rounds.jsonl says of a client in a round."""

    down: int = 0
    up: int = 0
    failed: str | None = None
    weight: Finite | None = None


@dataclass(frozen=True)
class KeptPrivacy:
    """What a round and those before it have spent."""

    epsilon: Finite | None = None
    delta: Finite | None = None
    unit: str = ""


@dataclass(frozen=True)
class KeptChoices:
    """How many clients each of several models had in a round, and by client the number of its
    model."""

    sizes: Sequence[int] = ()
    chosen: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptReports:
    """What a report draws of what algorithms told of a round."""

    ifca: KeptChoices | None = None


@dataclass(frozen=True)
class KeptRound:
    """A line of rounds.jsonl."""

    round: int
    clients: Mapping[str, KeptClient]
    bytes_down: int
    bytes_up: int
    held_out: Mapping[str, Finite | None] | None
    seconds: Finite
    note: str = ""
    metrics: Mapping[str, Finite | None] = field(default_factory=dict)
    privacy: KeptPrivacy | None = None
    reports: KeptReports = field(default_factory=KeptReports)


@dataclass(frozen=True)
class ClientAccuracy:
    """How a result serves each client."""

    mean: Finite | None = None
    worst_decile: Finite | None = None
    best_decile: Finite | None = None
    std: Finite | None = None
    each: Mapping[str, Finite | None] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptMetric:
    """A metric over owners; what has no value is None."""

    mean: Finite | None = None
    worst_tenth: Finite | None = None
    pooled: Finite | None = None
    interval: tuple[Finite, Finite] | None = None
    each: Mapping[str, Finite | None] = field(default_factory=dict)
    intervals: Mapping[str, tuple[Finite, Finite]] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptOwners:
    """What owners measured on their own held-out examples."""

    examples: Mapping[str, int]
    without: Sequence[str] = ()
    metrics: Mapping[str, KeptMetric] = field(default_factory=dict)
    classes: Sequence[str] = ()
    confusion: Sequence[Sequence[int]] = ()
    roc: Mapping[str, Sequence[tuple[Finite, Finite]]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    not_asked: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(len(row) != len(self.classes) for row in (self.confusion, *self.confusion)):
            raise ValueError("the confusion matrix has not one line and column for each class")


@dataclass(frozen=True)
class KeptStart:
    """What a run began with, after so many rounds."""

    round: int
    metrics: Mapping[str, Finite | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What a report takes from summary.json; what an older version did not write is None."""

    clients: int | None = None
    trainable_params: int | None = None
    full_params: int | None = None
    bytes_up_per_client_round: Finite | None = None
    bytes_down_per_client_round: Finite | None = None
    seconds: Finite | None = None
    partition: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    cpu: str = ""
    client_accuracy: ClientAccuracy | None = None
    owners: KeptOwners | None = None
    own_held_out: KeptOwners | None = None
    start: KeptStart | None = None


@dataclass(frozen=True)
class KeptDivision:
    """What a report takes from partition.json: the examples of each class that each client
    holds."""

    fingerprint: str | None = None
    classes: Sequence[str | int] = ()
    histograms: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(len(counts) != len(self.classes) for counts in self.histograms.values()):
            raise ValueError("a client has not one count for each class")


@dataclass(frozen=True)
class KeptSample:
    """How a language model goes on from a held-out prompt; see `fedpeft evaluate --sample`."""

    given: str
    before: str
    after: str
    truth: str


@dataclass(frozen=True)
class Samples:
    """samples.json, of the checkpoint after so many rounds."""

    round: int
    samples: Sequence[KeptSample]
    rouge: Mapping[str, Mapping[str, Finite]] | None = None


@dataclass(frozen=True)
class Range:
    """A value and its 95 % interval."""

    value: Finite
    low: Finite
    high: Finite


@dataclass(frozen=True)
class Compared:
    """The share of right answers of a base model and of the tuned one, and their difference
    question by question."""

    base: Range
    tuned: Range
    difference: Range


@dataclass(frozen=True)
class Benchmark:
    """Multiple-choice questions; see `fedpeft evaluate --benchmark`."""

    benchmark: str
    shots: int
    round: int
    questions: int
    left_out: int
    chance: Finite
    metrics: Mapping[str, Compared]
    template: str = ""


@dataclass(frozen=True)
class Benchmarks:
    """benchmarks.json."""

    benchmarks: Sequence[Benchmark] = ()


@dataclass(frozen=True)
class KeptAudit:
    """What audit.json says of the plan's ε: a measured lower bound beside the accountant's upper
    one, which is None where there is no noise."""

    unit: str
    canaries: int
    rounds: int
    guesses: int
    right: int
    epsilon_lower: Finite
    epsilon_upper: Finite | None
    delta: Finite


@dataclass(frozen=True)
class KeptArrival:
    """What a merge came to with one more file; `client` is None before the first."""

    client: str | None
    held_out: Mapping[str, float | None]
    examples: int | None = None


@dataclass(frozen=True)
class KeptArrivals:
    """What a merge measured after each file, in the order in which they came."""

    arrivals: Sequence[KeptArrival]


@dataclass(frozen=True)
class KeptWindow:
    """Steps that a model was given, the steps that followed, and what the base model and the run's
    say of these; None where a value was not finite. It is number `place` of the `of` windows that
    its client holds out; the client is empty where the windows are nobody's in particular."""

    client: str
    place: int
    of: int
    given: Sequence[Finite | None]
    truth: Sequence[Finite | None]
    before: Sequence[Finite | None]
    after: Sequence[Finite | None]

    def __post_init__(self) -> None:
        if not self.given or {len(self.before), len(self.after)} != {len(self.truth)}:
            raise ValueError("a window has a past, and as many steps in each of its futures")


@dataclass(frozen=True)
class KeptCurves:
    """curves.json, of the checkpoint after so many rounds; of how many clients some were
    chosen."""

    round: int
    clients: int
    windows: Sequence[KeptWindow]


@dataclass(frozen=True)
class Picture:
    """What is held out with a caption, and what the base model and the run's draw of it from the
    same noise."""

    caption: str
    truth: WebP
    before: WebP
    after: WebP


@dataclass(frozen=True)
class ClipScores:
    """The score of each picture, by a CLIP."""

    model: str
    truth: Sequence[Finite]
    before: Sequence[Finite]
    after: Sequence[Finite]


@dataclass(frozen=True)
class KeptPictures:
    """pictures.json, of the checkpoint after so many rounds; how they were drawn stands beside
    them."""

    round: int
    steps: int
    guidance: Finite
    seed: int
    pictures: Sequence[Picture]
    clip: ClipScores | None = None
