"""A run's result as a folder that `transformers` and `peft` load, without fedpeft, and that computes the same.

adapter  a method of `peft`'s: adapter_config.json and adapter_model.safetensors, the head among its tensors
model    what only changes parameters of the base, or an adapter merged into them: config.json, model.safetensors
code     layers of fedpeft's own (adapter, prompt): a model, and modeling_fedpeft.py, which makes them
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fedpeft.errors import RunError
from fedpeft.runs.adapter_folder import merged, save_adapter, tuned
from fedpeft.runs.inputs import save_inputs
from fedpeft.runs.model_card import model_card
from fedpeft.runs.model_folder import is_plain, own_layers, save_model, save_with_code
from fedpeft.runs.result import Result, fill, read_result
from fedpeft.runs.widened import widened


def export_run(path: Path, out: Path, merge: bool = False) -> list[Path]:
    """Write the last checkpoint of the run in the folder `path` to the new folder `out`, whole or not at all.

    Args:
      merge: compute an adapter into the base's weights and write the whole model.

    Returns:
      The files written.

    Raises:
      RunError: no run, no checkpoint, something at `out`, or a model or method that cannot be exported.
      PlanError: the base model cannot be loaded.
    """
    _vacant(out)
    result = widened(read_result(path))
    with _new_folder(out) as folder, _quiet():
        card = _write(result, folder, out, merge)
        save_inputs(result.plan.task, folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        for file in folder.iterdir():  # safetensors makes files for their owner only
            file.chmod((folder / "README.md").stat().st_mode)
    return sorted(out.iterdir())


def _write(result: Result, folder: Path, out: Path, merge: bool) -> str:
    """The model's files; returns the card that goes with them."""
    configure = getattr(result.plan.method, "config", None)
    if callable(configure):
        wrapped, base = tuned(result, configure)
        if not merge:
            save_adapter(wrapped, folder)
            return model_card(result, out, "adapter", base)
        model = merged(wrapped, result)
    else:
        model = result.plan.model(result.classes)
        fill(model, result.tensors, result)
    if own_layers(model):
        if merge:
            raise result.refuse("its layers cannot be merged into the base's weights; leave out --merge")
        save_with_code(model, folder, result)
        return model_card(result, out, "code")
    if not is_plain(model):
        raise result.refuse(
            "it changes the model in a way that transformers and peft do not know. Methods that can be exported give "
            "a peft configuration (a method `config`), change the base's parameters only, or are adapter and prompt"
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
    """A folder beside `out` that takes its place when all is written; after an error nothing is left of it."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as around:
        folder = Path(around) / out.name
        folder.mkdir()
        yield folder
        if out.exists():
            out.rmdir()  # empty, but a folder is not renamed onto it everywhere
        folder.rename(out)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what `transformers` says of new heads, and without its bars."""
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
