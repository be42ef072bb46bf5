"""The README.md of an exported folder: what it is, how it came about, what it cost, and the lines
that load it."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

from fedpeft import __version__
from fedpeft.core.facts import Fact, offered_by
from fedpeft.core.units import say_epsilon
from fedpeft.errors import say_count
from fedpeft.export.adapter_folder import Base
from fedpeft.export.generation_lines import generation_lines, literal
from fedpeft.export.picture_lines import picture_usage, tell_of_pictures
from fedpeft.results.result import Result
from fedpeft.runs.folder import read_json, read_rounds
from fedpeft.tasks.language import LanguageTask
from fedpeft.tasks.loader import DENOISER, TEXTS, TOKENIZER
from fedpeft.tasks.text_to_image import TextToImage

Form = Literal["adapter", "model", "code"]
"""An adapter on top of its base, a whole model, or one that brings code."""

SAYS: dict[Form, str] = {
    "adapter": "An adapter for",
    "model": "A fine-tuned copy of",
    "code": "With layers of its own (`modeling_fedpeft.py`), a fine-tuned copy of",
}

NAMED = (
    "    id2label=dict(enumerate(classes)),",
    "    label2id={name: k for k, name in enumerate(classes)},",
)
"""What tells a classifier the names of its classes."""


def model_card(result: Result, out: Path, form: Form, base: Base | None = None) -> str:
    """The card as Markdown, with front matter.

    Args:
      out: the folder's name in the lines that load it.
      base: what an adapter is loaded on.
    """
    plan, named = result.plan, base_name(result)
    made = (
        "Trained from random weights, a model of the kind of"
        if not plan.method.pretrained
        else SAYS[form]
    )
    parts = [
        _front_matter(result, form),
        f"# {plan.name}: {named}, {result.method}",
        f"{made} `{named}`, {_how_learned(result)}",
        _table(_facts(result)),
        "## How to load it",
        _exact(result, form, merged=form == "model" and hasattr(plan.method, "config")),
        _code("python", _loading_lines(result, out, form, base)),
        *tell_of_pictures(result),
        _code("python", _usage_lines(result)),
        "## The plan",
        _how_to_repeat(result),
        _code("toml", plan.toml()),
    ]
    return "\n\n".join(parts)


def _how_learned(result: Result) -> str:
    plan = result.plan
    if plan.rounds or not plan.hooks("before_rounds"):
        return (
            "trained by federated learning with fedpeft: the examples stayed with the clients, and "
            "only the tensors that were trained travelled."
        )
    return (
        "with a head that nobody trained: fedpeft made it of sums of features, which the clients "
        "sent once, and the examples stayed with them."
    )


def _how_to_repeat(result: Result) -> str:
    """What makes the run anew; where the examples lie elsewhere, not the plan alone."""
    if result.folder.contributions.is_dir():
        return (
            "It was merged from contribution files. `fedpeft merge STUDY FILES -o NEW` with the "
            "same files repeats it; the files themselves are made by their owners alone, of "
            "`fedpeft invite plan.toml` with this as `plan.toml`:"
        )
    if result.plan.nodes.names is not None:
        return (
            "`fedpeft run plan.toml --engine flower --federation NAME` with this as `plan.toml` "
            "repeats the run at the nodes that it names, which have the examples:"
        )
    return "`fedpeft run plan.toml` with this as `plan.toml` repeats the run:"


def base_name(result: Result) -> str:
    """The base model as the plan has it; of a folder, its name."""
    name = str(getattr(result.plan.task, "model", ""))
    return Path(name).name if Path(name).is_absolute() else name


def _front_matter(result: Result, form: Form) -> str:
    values: dict[str, Any] = {
        "library_name": _library(result, form),
        "pipeline_tag": result.loader.pipeline,
        "tags": ["fedpeft", "federated-learning", result.method],
    }
    if result.plan.method.pretrained:
        values["base_model"] = base_name(result)
        values["base_model_relation"] = "adapter" if form == "adapter" else "finetune"
    # what is JSON on one line is YAML too
    return "\n".join(
        ["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items()), "---"]
    )


def _library(result: Result, form: Form) -> str:
    if result.loader == DENOISER:
        return "diffusers"
    return "peft" if form == "adapter" else "transformers"


def _facts(result: Result) -> list[tuple[str, str]]:
    plan, state = result.plan, result.checkpoint.state
    # a plan of no rounds has a line too, of what was sent and measured without them
    rounds = read_rounds(result.folder)[: state.round if plan.rounds else 1]
    rounds = [{**line, "round": min(line["round"], plan.rounds)} for line in rounds]
    division = read_json(result.folder.partition) or {}
    planned = f" of {plan.rounds}" if state.round < plan.rounds else ""
    return [
        *_model_facts(result),
        *([("whose", f"the client `{result.client}`'s own model")] if result.client else []),
        ("clients", str(division.get("clients", "unknown"))),
        ("rounds", f"{state.round}{planned}"),
        ("cohort", f"{say_count(plan.cohort, 'clients')} a round"),
        *_traffic_lines(rounds),
        *_metric_lines(result, rounds),
        ("seed", str(plan.seed)),
        ("partition", partition_words(division)),
        ("plan", f"`{plan.fingerprint}`"),
        *_versions(result.checkpoint.environment.get("versions", {})),
    ]


def partition_words(division: Mapping[str, Any]) -> str:
    """Owners who have examples of their own divide nothing."""
    known = division.get("fingerprint")
    return f"`{known}`" if known else "none: each client has examples of its own"


def _model_facts(result: Result) -> list[tuple[str, str]]:
    unused = "" if result.plan.method.pretrained else ", its weights not used"
    facts = [("base model", f"`{base_name(result)}`{unused}")]
    if bits := _quantization_line(result):
        held = "matrices in" if bits == "bfloat16" else "linear layers in four bits,"
        facts.append(("in training", f"the base's {held} `{bits}`"))
    trained = sum(x.numel() for x in result.tensors.values())
    return [*facts, ("method", f"`{result.method}`, {trained:,} trained parameters")]


def _traffic_lines(rounds: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    asked = [client for line in rounds for client in line["clients"].values()]
    came = sum(client["up"] > 0 for client in asked)
    up, down = (sum(line[f"bytes_{way}"] for line in rounds) for way in ("up", "down"))
    return [
        ("bytes up, measured", _bytes(up, came)),
        ("bytes down, measured", _bytes(down, len(asked))),
    ]


def _metric_lines(result: Result, rounds: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """How well it does, and what it gives away at most."""
    if result.loader.reads_classes:
        facts = [_accuracy(rounds)]
    else:
        facts = _held_out(rounds, result.loader.unit)
    if privacy := result.checkpoint.privacy:
        facts.append(("differential privacy", _privacy(privacy)))
    return facts


def _versions(versions: Mapping[str, str]) -> list[tuple[str, str]]:
    named = [name for name in ("torch", "transformers", "peft") if name in versions]
    return [
        ("fedpeft", f"{versions.get('fedpeft', 'unknown')}, exported with {__version__}"),
        ("libraries", ", ".join(f"{name} {versions[name]}" for name in named)),
    ]


def _bytes(total: int, messages: int) -> str:
    return f"{total:,} in all" + (
        f", {total / messages:,.0f} for a client and round" if messages else ""
    )


def _privacy(privacy: Mapping[str, Any]) -> str:
    if privacy["epsilon"] is None:
        return f"none: noise without a guarantee for any {privacy['unit']}"
    counted = (
        f"ε = {say_epsilon(privacy['epsilon'])}, δ = {privacy['delta']:g} for one {privacy['unit']}"
    )
    return f"{counted}, accountant {privacy['accountant']}"


def _accuracy(rounds: Sequence[dict[str, Any]]) -> tuple[str, str]:
    label = "accuracy on held-out examples"
    measured = [line for line in rounds if (line["held_out"] or {}).get("accuracy") is not None]
    if not measured:
        return label, "not measured"
    return label, f"{measured[-1]['held_out']['accuracy']:.4f} after round {measured[-1]['round']}"


def _held_out(rounds: Sequence[dict[str, Any]], what: str) -> list[tuple[str, str]]:
    measured = [line for line in rounds if line["held_out"]]
    if not measured:
        return [(f"loss on held-out {what}", "not measured")]
    last = measured[-1]
    told = {name: "not finite" if x is None else f"{x:.4f}" for name, x in last["held_out"].items()}
    return [
        (f"{name} on held-out {what}", f"{value} after round {last['round']}")
        for name, value in told.items()
    ]


def _loading_lines(result: Result, out: Path, form: Form, base: Base | None) -> list[str]:
    if isinstance(task := result.plan.task, TextToImage):
        return _denoiser(task, out, form)
    auto, reader = result.loader.auto, result.loader.reader
    what = "tokenizer" if reader == TOKENIZER else "processor"
    trust = ", trust_remote_code=True" if form == "code" else ""
    lines = [
        f"from transformers import {', '.join(sorted(filter(None, (auto, reader))))}",
        "",
        f"folder = {literal(str(out))}",
    ]
    if form == "adapter" and base is not None:
        lines = ["from peft import PeftModel", *lines, *_adapter_lines(result, base)]
    else:
        lines += [f"model = {auto}.from_pretrained(folder{trust}).eval()"]
    # some models read numbers as they are
    return [*lines, f"{what} = {reader}.from_pretrained(folder{trust})"] if reader else lines


def _adapter_lines(result: Result, base: Base) -> list[str]:
    """The lines that load the base and put the adapter in `folder` into it."""
    settings: dict[str, Any] = {"dtype": "float32"}
    classes: list[str] = []
    if result.loader.classifies:
        settings["ignore_mismatched_sizes"] = True
        classes = list_literal("classes", result.classes)
    return [
        _base_line(base.place),
        *classes,
        f"model = {result.loader.auto}.from_pretrained(",
        "    base,",
        *(f"    {key}={literal(x)}," for key, x in {**settings, **base.settings}.items()),
        *(NAMED if classes else ()),
        ")",
        "model = PeftModel.from_pretrained(model, folder).eval()",
    ]


def _base_line(place: str) -> str:
    """The line that says where the base is. Of a folder it has the name alone: the path is of the
    machine that exported, and tells others nothing but its users' names."""
    folder = Path(place)
    if not folder.is_dir():
        return f"base = {literal(place)}"
    ours = Path(str(files("fedpeft"))) / "assets"
    hint = (
        f"fedpeft/assets/{folder.name} of an installed fedpeft"
        if folder.resolve().parent == ours.resolve()
        else "the path of the base model's folder on your machine"
    )
    return f"base = {literal(folder.name)}  # set this: {hint}"


def _denoiser(task: TextToImage, out: Path, form: Form) -> list[str]:
    """The lines that load a tuned denoiser, and put it into its pipeline where there is one."""
    lines = ["from diffusers import StableDiffusionPipeline, UNet2DConditionModel", ""]
    lines += [f"folder = {literal(str(out))}", _base_line(task.model)]
    if form == "adapter":
        lines += ['unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")']
        lines += ['unet.load_lora_adapter(folder, prefix="unet", use_safetensors=True)']
    else:
        lines += ['unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")']
    return (
        lines
        if task.vae
        else [*lines, "pipeline = StableDiffusionPipeline.from_pretrained(base, unet=unet)"]
    )


def _quantization_line(result: Result) -> str | None:
    """What the base's weights were held in while the run trained, if not as they are saved."""
    return getattr(result.plan.task, "quantize", None)


def _exact(result: Result, form: Form, merged: bool) -> str:
    made = "outputs" if Fact.NO_LOGITS in offered_by(result.plan.task) else "logits"
    bits = _quantization_line(result)
    if bits == "bfloat16":
        return (
            "It was tuned on a base whose matrices were in bfloat16 and multiplied in "
            f"{result.plan.compute.base_dtype}. Here they are as they are saved: if that is "
            f"bfloat16 too, its {made} are the run's but for the rounding of float32."
        )
    if bits:
        config = f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{bits}")'
        hint = (
            f" With `quantization_config={config}` among the base's arguments it is the one "
            "tuned on."
        )
        return (
            f"It was tuned on a base whose linear layers were in four bits ({bits}, bitsandbytes). "
            f"Here the base is as it is saved, so that its {made} are the run's but for what "
            "quantization rounds." + (hint if form == "adapter" else "")
        )
    if merged:
        return (
            f"Its {made} are the run's but for the rounding of the merged weights, "
            "about 1e-6 of their size."
        )
    hint = "; that the base's head is new is reported, as the trained one comes with the adapter"
    return (
        f"With the libraries above, on the same kind of processor, its {made} are those of the run "
        "to the bit" + (hint if form == "adapter" and result.loader.classifies else "") + "."
    )


def _usage_lines(result: Result) -> list[str]:
    if isinstance(task := result.plan.task, LanguageTask):
        return generation_lines(task)
    if isinstance(task, TextToImage):
        wants = f"# latents are those of the autoencoder {task.vae}, which is no part of a pipeline"
        return [wants if task.vae else 'picture = pipeline("a caption").images[0]']
    if result.loader == TEXTS:
        return [*_as_trained(task).splitlines(), *result.loader.usage[1:]]
    return picture_usage(result)


def _as_trained(task: Any) -> str:
    """The lines that make tokens of texts as the training did."""
    how = f"truncation=True, max_length={task.max_length}, padding=True"
    if not task.special_tokens:
        how += ", split_special_tokens=True"
    return f'inputs = tokenizer(\n    texts, {how}, return_tensors="pt"\n)'


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


def _code(language: str, lines: Sequence[str] | str) -> str:
    text = lines if isinstance(lines, str) else "\n".join(lines)
    return f"```{language}\n{text.strip()}\n```"


def list_literal(name: str, values: Sequence[str]) -> list[str]:
    """A list of texts as lines of Python; no text is broken."""
    joined = ", ".join(literal(value).replace(" ", "\0") for value in values)
    inside = wrap(joined, 110, break_long_words=False, break_on_hyphens=False)
    if len(inside) == 1:
        return [f"{name} = [{inside[0]}]".replace("\0", " ")]
    return [f"{name} = [", *("    " + line.replace("\0", " ") for line in inside), "]"]
