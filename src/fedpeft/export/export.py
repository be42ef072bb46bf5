"""A run's result as a folder that `transformers` and `peft` load, without fedpeft, and that
computes the same.

adapter   a method of `peft`'s: adapter_config.json and adapter_model.safetensors, the head among
          its tensors
model     what only changes parameters of the base, or an adapter merged into them: config.json,
          model.safetensors
denoiser  of a text-to-image run: LoRA as `diffusers` loads it onto a pipeline, or the whole unet
code      layers of fedpeft's own (adapter, prompt): a model, and modeling_fedpeft.py, which makes
          them

Each has the plan beside it, and where it comes from (`ro-crate-metadata.json`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fedpeft.errors import RunError
from fedpeft.export.adapter_folder import merge_adapter, save_adapter, wrap_adapter
from fedpeft.export.beside import save_beside
from fedpeft.export.denoiser_folder import save_denoiser
from fedpeft.export.model_card import base_name, model_card
from fedpeft.export.model_folder import is_plain, own_layers, save_model, save_with_code
from fedpeft.export.nearest_factors import prepare_result
from fedpeft.registry import REGISTERED, Code
from fedpeft.results.result import Result, fill, read_result
from fedpeft.tasks.pretrained import quiet
from fedpeft.tasks.text_to_image import TextToImage


def export_run(
    path: Path,
    out: Path,
    merge: bool = False,
    code: Code = REGISTERED,
    best: bool = False,
    client: str = "",
    rank: int = 0,
) -> list[Path]:
    """Write the last checkpoint of the run in the folder `path` to the new folder `out`, whole or
    not at all.

    Args:
      merge: compute an adapter into the base's weights and write the whole model.
      code: which modules the run's plan may name.
      best: take the round that the plan selects, and not the last one.
      client: whose own model to take, where each client has one.
      rank: write what changed of the base's weights as LoRA of this rank; 0 for all as it is.

    Returns:
      The files written.

    Raises:
      RunError: no run, no checkpoint, something at `out`, or a model or method that cannot be
        exported.
      PlanError: the base model cannot be loaded.
    """
    _vacant(out)
    read = read_result(path, code, best, client)
    result = prepare_result(read, rank)
    with _new_folder(out) as folder, quiet():
        card = _write(result, folder, out, merge)
        save_beside(card, result, read, folder, out, _asked(merge, best, rank))
        for file in _files(folder):  # safetensors makes files for their owner only
            file.chmod((folder / "README.md").stat().st_mode)
    return _files(out)


def _asked(merge: bool, best: bool, rank: int) -> dict[str, int | bool]:
    """What the files alone do not tell; whose model it is stands in the crate by its number."""
    every = {"merge": merge, "best": best, "lora-rank": rank}
    return {name: value for name, value in every.items() if value}


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _write(result: Result, folder: Path, out: Path, merge: bool) -> str:
    """The model's files; returns the card that goes with them."""
    if isinstance(result.plan.task, TextToImage):
        return model_card(result, out, save_denoiser(result, folder, merge))
    configure = getattr(result.plan.method, "config", None)
    if callable(configure):
        wrapped, base = wrap_adapter(result, configure)
        if not merge:
            save_adapter(wrapped, folder, base_name(result))
            return model_card(result, out, "adapter", base)
        model = merge_adapter(wrapped, result)
    else:
        model = result.plan.unquantized.model(result.classes)
        fill(model, result.tensors, result)
    if own_layers(model):
        if merge:
            raise result.refuse(
                "its layers cannot be merged into the base's weights; leave out --merge"
            )
        save_with_code(model, folder, result)
        return model_card(result, out, "code")
    if not is_plain(model):
        raise result.refuse(
            "it changes the model in a way that transformers and peft do not know. "
            "Methods that can be exported give a peft configuration (a method `config`), "
            "change the base's parameters only, or are adapter and prompt"
        )
    save_model(model, folder)
    return model_card(result, out, "model")


def _vacant(out: Path) -> None:
    if out.is_file():
        raise RunError(f"{out} is a file: name a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise RunError(f"{out} is not empty: name a new or an empty folder")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all is written; after an error nothing is
    left of it."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as around:
        folder = Path(around) / out.name
        folder.mkdir()
        yield folder
        if out.exists():
            out.rmdir()  # empty, but a folder is not renamed onto it everywhere
        folder.rename(out)
