"""Where things are in a transformer, told by its structure: blocks, attention, MLP, normalisation,
head."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from fedpeft.compute.trainable import head_of, new_layers
from fedpeft.errors import PlanError

VOCABULARY = "lm_head"
DENOISED = "conv_out"


def trained_head(model: nn.Module, head: str) -> str:
    """The name of the head that is trained beside a method's own tensors; "" for none.

    With "auto" the output layer of a language model stays frozen: it is pre-trained like the rest,
    as large as the vocabulary, and often the embedding itself. So does a denoiser's. A head made
    for the task's classes is trained.

    Raises:
      PlanError: no such module, or none of the usual ones.
    """
    found = head_of(model, head)
    frozen = found in (VOCABULARY, DENOISED) or is_vocabulary(model, found)
    return "" if head == "auto" and frozen else found


def is_vocabulary(model: nn.Module, head: str) -> bool:
    """Whether a module is a language model's output layer, whatever its name."""
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    return output is not None and output is model.get_submodule(head)


def train_parts(model: nn.Module, parts: Iterable[nn.Module], head: str) -> nn.Module:
    """Freeze all but these modules and the head; in place."""
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    if head:
        model.get_submodule(head).requires_grad_(True)
    return model


def blocks(model: nn.Module) -> list[list[str]]:
    """The names of the blocks, one list for each innermost stack of modules that all hold an
    attention."""
    stacks = {
        name: stack
        for name, stack in model.named_modules()
        if isinstance(stack, nn.ModuleList)
        and len(stack)
        and all(_attends(block) for block in stack)
    }
    innermost = [
        name for name in stacks if not any(other.startswith(f"{name}.") for other in stacks)
    ]
    return [[f"{name}.{k}" for k in range(len(stacks[name]))] for name in innermost]


def mlp_outputs(model: nn.Module) -> list[str]:
    """The names of the last linear layers of the blocks' MLPs, e.g. `vit.layers.0.mlp.fc2`.

    Raises:
      PlanError: the model has no blocks, or one without such an MLP.
    """
    names = [name for stack in blocks(model) for name in stack]
    if not names:
        raise PlanError(
            f"{name_model(model)} has no transformer blocks (a ModuleList of modules that hold an "
            'attention); use method = "full", "head" or "bias", or a ViT, BERT or Llama'
        )
    return [f"{name}.{_last_linear(name, model.get_submodule(name))}" for name in names]


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer; GPT-2's `Conv1D` is one, with its weight transposed."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def features_of(linear: nn.Module) -> tuple[int, int]:
    """How many numbers come into a linear layer, and how many go out."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    return int(linear.nx), int(linear.nf)  # type: ignore[arg-type]


def _last_linear(name: str, block: nn.Module) -> str:
    linears: list[tuple[str, nn.Module]] = [
        (n, m) for n, m in block.named_modules() if is_linear(m) and not _is_attention(n)
    ]
    if len(linears) < 2 or features_of(linears[0][1])[0] != features_of(linears[-1][1])[1]:
        found = ", ".join(n for n, _ in linears) or "none"
        raise PlanError(
            f"the block {name!r} has no MLP that ends in a linear layer back to the block's width "
            f"(linear layers outside its attention: {found}); a ViT, BERT or Llama has"
        )
    return linears[-1][0]


def normalisations(model: nn.Module, head: str) -> list[str]:
    """The names of the layers that normalise over features (LayerNorm, RMSNorm), outside the head
    and not new.

    Raises:
      PlanError: there are none.
    """
    found = [
        name
        for name, module in model.named_modules()
        if (
            isinstance(module, nn.LayerNorm)
            or type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
        )
        and next(module.parameters(recurse=False), None) is not None
        and not (head and name.startswith(f"{head}."))
        and f"{name}.weight" not in new_layers(model).beside
    ]
    if not found:
        raise PlanError(f"{name_model(model)} has no LayerNorm or RMSNorm with weights to train")
    return found


def name_model(model: nn.Module) -> str:
    """How an error names a model."""
    return f"the model {type(model).__name__}"


def _attends(block: nn.Module) -> bool:
    return any(_is_attention(name) for name, _ in block.named_modules())


def _is_attention(name: str) -> bool:
    return "att" in name.lower()
