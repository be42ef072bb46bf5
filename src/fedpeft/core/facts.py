"""Facts by which parts fit together or do not.

A part declares what is true of it (`offers`), what some other part must offer (`needs`), and what
no other part may offer (`forbids`); the last two say in words what to do. Nothing here judges: the
checker of a plan, the settings that refuse some facts ("invite", "diagnose", ...), and the tests
that build every fitting combination read the same facts.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any


class Fact(Enum):
    """Something true of a part or a setting; the value says it in words, after a subject."""

    COMPARES = "compares the clients' updates one by one"
    FACTORS = "merges LoRA's factors by a rule of their own"
    MIXED_RANKS_MERGED = "can merge factors of different ranks"
    ORDERED = "leaves low-rank factors in the order of their singular values"
    PLAIN_MEAN = "is the weighted mean"
    AS_THEY_ARE = "gives factors that hold only as they are"
    MERGES_BASE = "adds to frozen weights"
    SCALES_STEP = "changes the step that the aggregator gives"
    LOW_RANK = "trains low-rank factors"
    MIXED_RANKS = "gives clients different ranks"
    MIXED_TENSORS = "lets clients of one round send different tensors"
    MIXED_VIEWS = "gives clients of one round different tensors to train"
    DEPTHS = "can end after some of its blocks"
    SEVERAL_LOGITS = "gives logits in several places"
    ROWS_OF_EXITS = "gives its head the features of several exits as rows of a batch"
    MIXED_BUDGETS = "lets codecs keep more entries of some clients than of others"
    MIXES_ENTRIES = "mixes entries with each other"
    PERSONAL = "keeps tensors with each client"
    REMEMBERS_MEAN = "keeps a mean over all clients, whoever takes part"
    SEVERAL_MODELS = "has several models, of which each client chooses one"
    TURNS = "lets other tensors stand still in each round"
    REMEMBERS = "makes clients remember something for the next round"
    SHARES_PROTOTYPES = "shares means of features by class"
    SHARES_EXAMPLES = "shares examples that the server makes"
    SERVER_MODEL = "computes with the model at the server"
    SENDS_LATER = "sends in a later round what it leaves out now"
    CONTROL = "shares control variates"
    PLAIN_STEPS = "takes steps that are sums of gradients"
    HANDS_OVER = "hands momentum from client to client"
    ONE_AT_A_TIME = "has one client in each round"
    MANY_AT_A_TIME = "has several clients in each round"
    MANY_PROCESSES = "trains clients in no fixed order"
    MANY_MESSAGES = "asks each client more than once"
    ASYNCHRONOUS = "takes steps without rounds"
    REVEALS = "tells the server something of a client's examples"
    SUM_ONLY = "shows the server a sum alone"
    EXAMPLE_NOISE = "hides each example by noise"
    CLIENT_NOISE = "hides each client by its own noise"
    SERVER_NOISE = "hides each client by the server's noise"
    SPARSE = "drops entries"
    LOSSY = "rounds or drops entries"
    LENGTH_TELLS = "makes messages whose length tells of what is in them"
    QUANTIZED = "holds frozen weights in fewer bits"
    WEIGHTS_BY_SIZE = "weights clients by their numbers of examples"
    GIVES_UP = "gives up a round for want of replies"
    COUPLES_EXAMPLES = "lets the examples of a batch change each other's loss"
    PACKED = "puts several examples into one row"
    MOVES_START = "does not start from the base as it is"
    TELLS_CLASSES = "tells classes apart"
    NO_LOGITS = "gives no logits of classes or words"
    SIMULATES = "simulates what real clients have of themselves"
    SPANS_ROUNDS = "follows a course over all rounds of the plan"
    OWN_LENGTH = "decides by itself how long a round is"
    JUDGES_LENGTH = "judges a client's length by the others'"


NOISE = (Fact.EXAMPLE_NOISE, Fact.CLIENT_NOISE, Fact.SERVER_NOISE)


SAID_BY: Mapping[str, Fact] = {
    "reveals": Fact.REVEALS,
    "remembers": Fact.REMEMBERS,
    "couples_examples": Fact.COUPLES_EXAMPLES,
    "spans_rounds": Fact.SPANS_ROUNDS,
    "tells_classes": Fact.TELLS_CLASSES,
}
"""Facts that an attribute of a part says, where it is true or not empty."""


def offered_by(part: Any) -> frozenset[Fact]:
    """What is true of a part: what it declares, and what its other attributes say."""
    found = set(getattr(part, "offers", ()))
    found |= {fact for name, fact in SAID_BY.items() if getattr(part, name, False)}
    found |= {Fact.MANY_MESSAGES} if hasattr(part, "handlers") else set()
    event = getattr(part, "event", None)
    # Noise that comes with no guarantee hides nobody.
    if event is not None and event.accounted:
        client = Fact.SERVER_NOISE if event.central else Fact.CLIENT_NOISE
        found.add(client if event.unit == "client" else Fact.EXAMPLE_NOISE)
    return frozenset(found)


def needed_by(part: Any) -> Mapping[Fact, str]:
    """What some other part must offer, with what to do where none does."""
    needs: Mapping[Fact, str] = getattr(part, "needs", {})
    return needs


def forbidden_by(part: Any) -> Mapping[Fact, str]:
    """What no other part may offer, with why and what to do."""
    forbids: Mapping[Fact, str] = getattr(part, "forbids", {})
    return forbids
