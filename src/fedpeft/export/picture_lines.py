"""What a card says of pictures, so that a reader's are brought to what the training saw."""

from typing import Any

from fedpeft.data.depth import Window, window_in
from fedpeft.results.result import Result
from fedpeft.runs.folder import read_json
from fedpeft.tasks.loader import see_grey

UPRIGHT = "The training turned pictures upright, as `PIL.ImageOps.exif_transpose` does."
DEEP = (
    "It brought pictures of more than 8 bits to 8 bits, which the processor does not do. "
    "`as_trained` does both:"
)
UNSEEN = (
    "The plan sets no `data.window`, and the run's folder tells of none. Bring pictures of more "
    "than 8 bits to 8 bits first: PIL's `convert` cuts off all values above 255."
)
OWN = (
    "Pictures of more than 8 bits went through the window that their own file names for display, "
    "and become 8 bits by it first."
)
ENDS = {
    "minmax": "values.min(), values.max()",
    "percentile": "np.percentile(values, (0.5, 99.5))",
}


def picture_usage(result: Result) -> list[str]:
    """Lines of Python that use a model, which may see grey."""
    see = getattr(result.plan.task, "input", None)
    grey = getattr(see, "channels", None) == 1
    return see_grey(result.loader.usage) if grey else list(result.loader.usage)


def tell_of_pictures(result: Result) -> list[str]:
    """Paragraphs for the card; none where the data are no pictures in files."""
    data: Any = result.plan.data
    if result.loader.reader != "AutoImageProcessor" or not hasattr(data, "window"):
        return []
    window: Window = data.window or window_in(_notes(result))
    if window is None or window == "own":
        return [f"{UPRIGHT} {OWN if window else UNSEEN}"]
    ends = ENDS[window] if isinstance(window, str) else f"{window[0]!r}, {window[1]!r}"
    return [f"{UPRIGHT} {DEEP}", f"```python\n{_function(ends)}\n```"]


def _notes(result: Result) -> list[str]:
    return list((read_json(result.folder.partition) or {}).get("notes", ()))


def _function(ends: str) -> str:
    return f'''\
import numpy as np
from PIL import Image, ImageOps


def as_trained(picture):
    """A PIL picture, upright and of 8 bits."""
    picture = ImageOps.exif_transpose(picture)
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture).astype("float64")
    low, high = {ends}
    grey = ((values - low) * (255 / ((high - low) or 1))).clip(0, 255).round()
    return Image.fromarray(grey.astype("uint8"))


picture = as_trained(picture)'''
