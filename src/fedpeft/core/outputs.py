"""What a task's forward pass gives, by name.

logits: of a classifier (batch, classes), of a language model (batch, tokens, words).
token_losses: of a language model, where nobody asks for its logits and they would be large, the
  loss of each token but the first, (batch, tokens - 1); 0 where a token does not count.
counted: of a language model (batch, tokens), true where a token's logits count in the loss.
features: what comes into the head, (batch, features), where it is asked for; of a language model
  (batch, tokens, features).
likelihoods: of a task that compares answers (batch, 2), the log-likelihoods of the better one and
  of the worse one.
prediction: of a task without classes, what the model tells, (batch, ...).
logits/<place>: further logits of the same examples, as those of an early exit; they are learned and
  measured as the logits are.
losses: the task's losses, (batch,), for terms that bring examples of their own.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

from torch import Tensor, nn

Outputs: TypeAlias = Mapping[str, Tensor]
LOGITS = "logits"
TOKEN_LOSSES = "token_losses"
COUNTED = "counted"
FEATURES = "features"
LIKELIHOODS = "likelihoods"
PREDICTION = "prediction"
LOSSES = "losses"
ROUND = "round"
"""The round's number, among what terms of the loss are given beside outputs."""
FURTHER = f"{LOGITS}/"
"""What the names of further logits begin with; the rest is their place, e.g. "block 3"."""

CARRIED = "carried"
"""What the names begin with, in `held`, of what terms of the loss remember from step to step."""

_NOTED = "fedpeft_outputs"


def note_outputs(model: nn.Module, module: str) -> None:
    """Note on the model itself a module that gives outputs by name, of which those beside the
    logits join what a task's forward pass gives."""
    setattr(model, _NOTED, module)


def note_mean(at: Tensor, values: Tensor) -> Tensor:
    """Zero for each example, (batch,). Its gradient by `at`, (n,), is the mean of the values,
    (batch, n), over the examples that count, however a batch is cut into parts or stacked."""
    return ((at - at.detach()) * values.detach()).sum(-1)


def further_logits(outputs: Outputs) -> dict[str, Tensor]:
    """The further logits by their places, in the order in which the model gives them."""
    return {
        name.removeprefix(FURTHER): x for name, x in outputs.items() if name.startswith(FURTHER)
    }


@contextmanager
def head_input(model: nn.Module, head: str | None) -> Iterator[dict[str, Tensor]]:
    """Inside, each call of the module `head` puts its first argument into the dictionary that this
    gives, as `features`; with None it does not, and nothing is paid. The outputs of a module that
    is noted on the model (`note_outputs`) come into it too.

    The hooks live for one forward pass, inside of what `functional_call` and `vmap` see, so that
    what they record has the pass's gradients and belongs to the pass's clients.
    """
    found: dict[str, Tensor] = {}
    noted: str | None = getattr(model, _NOTED, None)

    def record(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        found[FEATURES] = given[0]

    def join(_: nn.Module, given: object, outputs: Outputs) -> None:
        found.update({name: x for name, x in outputs.items() if name != LOGITS})

    with ExitStack() as hooks:
        if head is not None:
            hook = model.get_submodule(head).register_forward_pre_hook(record)
            hooks.callback(hook.remove)
        if noted is not None:
            hooks.callback(model.get_submodule(noted).register_forward_hook(join).remove)
        yield found


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode: it draws no dropout and counts no statistics."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
