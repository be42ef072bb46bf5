"""Pictures that a text-to-image run keeps in its folder, for its report: held out, by the base
model, by its own.

pictures.json   which round's model drew how, and for each caption three pictures, WebP as base64;
                of a CLIP that was asked for, the score of each picture
"""

from base64 import b64encode
from dataclasses import asdict
from io import BytesIO
from typing import Any

from torch import Tensor

from fedpeft.core.types import State
from fedpeft.errors import RunError, reason_of
from fedpeft.evaluation.measure import with_params
from fedpeft.plan.plan import Plan
from fedpeft.results.pictures import pick_examples
from fedpeft.rounds.site import threads
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.folder import RunFolder, write_json
from fedpeft.tasks.clip import clip
from fedpeft.tasks.drawing import Drawing, prepare_drawing
from fedpeft.tasks.text_to_image import TextToImage

CAPTIONS = 6
MOST = 256
"""Pixels a side of a picture that is kept; larger ones are made smaller."""
EXACT = 128
"""Pixels a side up to which a picture is kept as it is, without loss."""


def draws(plan: Plan) -> bool:
    """Whether there is one model that draws: of text to image, and shared by all clients."""
    return isinstance(plan.task, TextToImage) and not plan.personal


def exhibit(
    folder: RunFolder,
    plan: Plan,
    state: State,
    number: int = CAPTIONS,
    device: str = "cpu",
    scored_by: str = "",
) -> dict[str, Any]:
    """Draw `number` held-out captions, the same noise for both models; returns what the folder then
    keeps.

    Args:
      scored_by: a CLIP's folder or hub name; none where it is empty.

    Raises:
      RunError: there is no model that draws.
      PlanError, DataError: the model, the CLIP or the data cannot be read.
    """
    if not isinstance(plan.task, TextToImage) or plan.personal:
        raise RunError(f"{folder.path} is no run of a text-to-image model that all clients share")
    judge, how = clip(scored_by) if scored_by else None, Drawing()
    with threads(plan.compute.threads):
        drawn = prepare_drawing(plan.task, how)
        captions, truth = pick_examples(plan, drawn, number)
        model: Any = plan.model(()).eval()
        columns = {"truth": truth, "before": drawn(model.to(device), captions)}
        columns["after"] = drawn(with_params(plan, model.cpu(), state.flat).to(device), captions)
        scores = {name: judge(x, captions).tolist() for name, x in columns.items()} if judge else {}
    kept = {
        "round": state.round,
        **asdict(how),
        "pictures": [
            {"caption": caption, **{name: _webp(x[k]) for name, x in columns.items()}}
            for k, caption in enumerate(captions)
        ],
        "clip": {"model": scored_by, **scores} if judge else None,
    }
    write_json(folder.pictures, kept, indent=None)
    return kept


def exhibit_at_end(folder: RunFolder, plan: Plan, device: str = "cpu") -> str:
    """What a finished run draws, kept; why there is nothing, if it fails: that must not cost a run
    its end."""
    try:
        saved = load_checkpoint(folder.checkpoint, plan)
        if saved is not None:
            exhibit(folder, plan, saved.state, device=device)
    except Exception as error:  # libraries and parts that users write may raise anything
        return f"no pictures were drawn for the report: {reason_of(error)}"
    return ""


def _webp(picture: Tensor) -> str:
    from PIL import Image

    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    if image.width > MOST:
        image = image.resize((MOST, MOST), Image.Resampling.LANCZOS)
    held = BytesIO()
    image.save(held, "WEBP", lossless=image.width <= EXACT, quality=90)
    return b64encode(held.getvalue()).decode()
