"""Models of Hugging Face `transformers`, by name or folder, with a new head for the task's
classes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from logging import ERROR, getLogger
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from fedpeft.compute.frozen_linear import prepare_half, prepare_quantized
from fedpeft.compute.trainable import head_of, mark_new_layers, new_layers, within
from fedpeft.core.outputs import evaluation_mode
from fedpeft.core.seeds import seed_torch
from fedpeft.errors import PlanError, explain_install
from fedpeft.storage.hub import UNREACHED, spare_lookups
from fedpeft.storage.locate import locate
from fedpeft.tasks.fit import check_loaded, find_new, note_new, note_output, output_layers

NO_CODE: Mapping[str, bool] = MappingProxyType({"trust_remote_code": False})
"""For all that is read from a model's folder. Where this is left out `transformers` asks on the
terminal whether to run Python files of the folder, and `yes |` says yes; no plan can say it."""

HALF = "bfloat16"
LEAST_HALF = 0.9
"""Of a model's parameters, the share that must be held in bfloat16 for it to be worth the while."""

NOTHING: Mapping[str, tuple[()]] = MappingProxyType({"missing_keys": (), "mismatched_keys": ()})
"""The report of a model that was made without a checkpoint."""


def config_of(name: str) -> Any:
    """The configuration of a model.

    Raises:
      PlanError: no such model here, and none to be had from the hub.
    """
    from transformers import AutoConfig

    found = locate(name)
    if found is not None and (found / "adapter_config.json").is_file():
        raise PlanError(
            f"model {name!r} is a saved adapter and no model: name its base as `model`, and begin "
            f'with the adapter by method.init = "{name}"'
        )
    offline = found is None and spare_lookups()
    try:
        config = AutoConfig.from_pretrained(str(found or name), **NO_CODE)
    except (OSError, ValueError) as error:
        why = UNREACHED if offline else str(error).splitlines()[0]
        raise PlanError(
            f"model {name!r} is neither a folder (looked here, in $FEDPEFT_DATA and in the "
            f"package) nor a hub model that can be read: {why}"
        ) from None
    if getattr(config, "architectures", None) is None:
        config.architectures = []  # transformers walks through them where a family has two heads
    return config


def classifier(
    auto: Any,
    name: str,
    classes: Sequence[str],
    pretrained: bool,
    problem_type: str = "",
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> nn.Module:
    """A model for classification in float32: `auto` is the `AutoModelFor...` of the task,
    `problem_type` what its configuration is to say, if anything, and `changes` other values of its
    keys.

    The head is new, so its weights come from torch's default generator, as do all of them with
    `pretrained = false`.
    """
    config = config_of(name)
    config.id2label = dict(enumerate(classes))
    config.label2id = {label: k for k, label in enumerate(classes)}
    config.num_labels = len(classes)
    if problem_type:
        config.problem_type = problem_type
    for key, value in changes.items():
        setattr(config, key, value)
    if not pretrained:
        model = _check_weights(auto.from_config(config, dtype=torch.float32, **NO_CODE), name)
        note_new(model, find_new(model, output_layers(model, config), NOTHING))
        return model
    model, report = _load(auto, name, config)
    outputs = output_layers(model, config)
    found = find_new(model, outputs, report)
    head = {key for key in model.state_dict() if found.head and within(key, found.head)}
    check_loaded(model, name, report, {*head, *found.beside})
    note_new(model, found)
    return _renew_head(model, config, outputs)


def language_model(
    name: str, pretrained: bool, quantize: str | None = None, auto: str = "AutoModelForCausalLM"
) -> nn.Module:
    """A decoder with its own output layer, in float32; with `pretrained = false` from torch's
    default generator. `auto` is its class of `transformers`, which may see pictures too.

    With `quantize = "bfloat16"` the weights of linear layers and embeddings stay in the file that
    they are mapped from, if it has them in bfloat16, and are rounded to it if not.

    With `quantize = "nf4"` the linear layers but the output have four bits a weight, and a float32
    for every 64. They are quantized on the processor, whatever computes later, and without a second
    quantization of these scales, which would take a mean: so the codes do not depend on the device
    or on the number of threads.

    Raises:
      PlanError: no such model, or nothing to quantize it from or with.
    """
    import transformers
    from transformers import BitsAndBytesConfig

    config, kind = config_of(name), getattr(transformers, auto)
    if quantize is None and not pretrained:
        made = kind.from_config(config, dtype=torch.float32, **NO_CODE)
        note_output(made)
        return _check_weights(made, name)
    if quantize is None:
        return _fitting(*_load(kind, name, config), name)
    if not pretrained:
        raise PlanError(
            f'quantize = "{quantize}": a model that is trained whole stays in float32; leave out '
            "one"
        )
    if getattr(config, "quantization_config", None):
        raise PlanError(
            f'quantize = "{quantize}": {name!r} is saved quantized; name the model that it was '
            "made of"
        )
    if quantize == HALF:
        return _half(_fitting(*_load(kind, name, config, dtype=torch.bfloat16), name), name)
    if find_spec("bitsandbytes") is None:
        raise PlanError(f'quantize = "{quantize}" needs bitsandbytes: {explain_install("4bit")}')
    # it tells of a kernel to download, for a product that is not used
    getLogger("bitsandbytes.backends.cpu").setLevel(ERROR)
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quantize, bnb_4bit_compute_dtype=torch.float32
    )
    settings = {"quantization_config": how, "device_map": {"": "cpu"}}
    loaded = _load(kind, name, config, **settings)
    return prepare_quantized(_fitting(*loaded, name))


def _half(model: nn.Module, name: str) -> nn.Module:
    """Raises PlanError where much of the model is no matrix of a linear layer or an embedding."""
    share = prepare_half(model)
    if share < LEAST_HALF:
        raise PlanError(
            f'quantize = "{HALF}" holds linear layers and embeddings in 16 bits, and only '
            f"{share:.0%} of {name!r}'s parameters are in such layers: leave it out"
        )
    return model


def sequence_model(name: str, pretrained: bool) -> nn.Module:
    """A model of an encoder and a decoder with its own output layer, in float32; with
    `pretrained = false` from torch's default generator.

    Raises:
      PlanError: no such model, or one without an encoder.
    """
    from transformers import AutoModelForSeq2SeqLM

    config = config_of(name)
    if not getattr(config, "is_encoder_decoder", False):
        raise PlanError(
            f"model {name!r} has no encoder and decoder, as T5 and BART have: name such a model, "
            'or use task = "causal-lm"'
        )
    return _whole(AutoModelForSeq2SeqLM, name, config, pretrained)


def speech_model(name: str, pretrained: bool) -> nn.Module:
    """A model that writes what it hears, with its own output layer, in float32; with `pretrained =
    false` from torch's default generator. It masks no features in training, which would draw from
    NumPy's global stream.

    Raises:
      PlanError: no such model, or one without an encoder for sound.
    """
    from transformers import AutoModelForSpeechSeq2Seq

    config = config_of(name)
    known = type(config) in AutoModelForSpeechSeq2Seq._model_mapping
    if not known or not getattr(config, "is_encoder_decoder", False):
        raise PlanError(
            f"model {name!r} has no encoder that hears and decoder that writes: name a model of "
            "the kind of Whisper"
        )
    if getattr(config, "apply_spec_augment", False):
        config.apply_spec_augment = False
    return _whole(AutoModelForSpeechSeq2Seq, name, config, pretrained)


def _whole(auto: Any, name: str, config: Any, pretrained: bool) -> nn.Module:
    """A model of which nothing is new, as saved or as the generator draws it."""
    if pretrained:
        return _fitting(*_load(auto, name, config), name)
    made = auto.from_config(config, dtype=torch.float32, **NO_CODE)
    note_output(made)
    return _check_weights(made, name)


def encoder_model(name: str, pretrained: bool) -> nn.Module:
    """A model without any head, in float32; with `pretrained = false` from torch's default
    generator.

    Raises:
      PlanError: no such model, or one with a decoder beside its encoder.
    """
    from transformers import AutoModel

    config = config_of(name)
    if getattr(config, "is_encoder_decoder", False):
        raise PlanError(
            f"model {name!r} has a decoder beside its encoder, and embeddings need one of them: "
            "name an encoder, such as BERT"
        )
    if pretrained:
        model, report = _load(AutoModel, name, config)
        check_loaded(model, name, report, find_new(model, (), report).beside)
    else:
        model = _check_weights(AutoModel.from_config(config, dtype=torch.float32, **NO_CODE), name)
    mark_new_layers(model, headless=True)
    return model


def two_tower_model(name: str, pretrained: bool) -> nn.Module:
    """A model with a tower for pictures and one for texts, such as CLIP, in float32; with
    `pretrained = false` from torch's default generator.

    Raises:
      PlanError: no such model, or one that does not tell pictures' and texts' features.
    """
    from transformers import AutoModel

    config = config_of(name)
    if not (hasattr(config, "vision_config") and hasattr(config, "text_config")):
        raise PlanError(
            f"model {name!r} ({config.model_type}) has not two towers, and image-text needs one "
            "for pictures and one for captions: name a model such as CLIP or SigLIP"
        )
    if pretrained:
        model, report = _load(AutoModel, name, config)
        check_loaded(model, name, report, ())
    else:
        model = _check_weights(AutoModel.from_config(config, dtype=torch.float32, **NO_CODE), name)
    wanted = ("get_image_features", "get_text_features", "logit_scale")
    if lacking := [one for one in wanted if not hasattr(model, one)]:
        raise PlanError(
            f"model {name!r} is a {type(model).__name__} without {', '.join(lacking)}, and its "
            "towers do not make embeddings to compare: name a model such as CLIP or SigLIP"
        )
    mark_new_layers(model, headless=True)
    return model


def forecaster(config: Any, name: str, pretrained: bool) -> nn.Module:
    """A PatchTST with its head for forecasts, in float32; with `pretrained = false` from torch's
    default generator. So is a head that the checkpoint has not, or of another horizon.

    Raises:
      PlanError: no such model, or weights that are not those of its configuration.
    """
    from transformers import PatchTSTForPrediction

    if not pretrained:
        return _check_weights(PatchTSTForPrediction(config), name)
    model, report = _load(PatchTSTForPrediction, name, config)
    check_loaded(model, name, report, [key for key in model.state_dict() if within(key, "head")])
    return model


def check_causal(name: str, model: nn.Module) -> None:
    """Make sure that a language model reads left to right: what follows a token changes nothing of
    what the model says after it.

    Raises:
      PlanError: it does, so that each token could be read off instead of told.
    """
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]])
    try:
        with torch.no_grad(), evaluation_mode(model), seed_torch(0):
            one, other = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :2]
    except Exception:  # the first batch of the plan tells what is wrong, with its shapes
        return
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-4):
        raise PlanError(
            f"model {name!r} does not read left to right, so it would see the tokens that it is to "
            'tell: name a decoder, set "is_decoder": true in its config.json, or use task = '
            '"text-classification"'
        )


def _load(auto: Any, name: str, config: Any, **settings: Any) -> tuple[nn.Module, Any]:
    """The model, and what of it was not in its checkpoint."""
    usual = {"config": config, "dtype": torch.float32, "ignore_mismatched_sizes": True}
    settings = usual | settings
    if torch.get_default_device().type == "meta":  # shapes and names alone are asked for
        settings["device_map"] = "meta"
    try:
        with quiet():
            path = str(locate(name) or name)
            model, report = auto.from_pretrained(
                path, output_loading_info=True, **settings, **NO_CODE
            )
    except (OSError, ValueError) as error:
        raise PlanError(f"model {name!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    return _check_weights(model, name), report


def _fitting(model: nn.Module, report: Any, name: str) -> nn.Module:
    """The model, all of which came from its checkpoint: nothing of a language model is new."""
    check_loaded(model, name, report, ())
    note_output(model)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars of `transformers`, and what it says of new heads, which are wanted."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_weights(model: nn.Module, name: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise PlanError(f"model {name!r} is no torch model")
    return model


def _renew_head(model: nn.Module, config: Any, outputs: Sequence[str]) -> nn.Module:
    """A new head even where the checkpoint's has the right number of classes: they are other
    classes. So have further heads."""
    head = new_layers(model).head or head_of(model)
    for name in (head, *(one for one in outputs if not within(one, head))):
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.Linear | nn.Conv2d):  # heads of pixels are convolutions
                nn.init.trunc_normal_(module.weight, std=getattr(config, "initializer_range", 0.02))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return model
