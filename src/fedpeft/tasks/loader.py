"""How the libraries that people know load the models of a task."""

from collections.abc import Sequence
from dataclasses import dataclass

TELLS_CLASS = (
    "print([model.config.id2label[k] for k in model(**inputs).logits.argmax(-1).tolist()])"
)
READS_TEXTS = (
    "inputs = tokenizer(\n    texts, truncation=True, padding=True, split_special_tokens=True, "
    'return_tensors="pt"\n)'
)
READS_PICTURES = (
    'inputs = processor(images=picture, return_tensors="pt")  # a PIL picture, or a list of them'
)


def see_grey(lines: Sequence[str]) -> list[str]:
    """Lines that use a model of one channel: the processors of `transformers` do not bring colours
    to grey."""
    grey = [
        ("images=picture,", 'images=picture.convert("L"),'),
        ("a PIL picture, or a list of them", "a PIL picture; the model sees grey"),
        ("images=frames,", 'images=[frame.convert("L") for frame in frames],'),
        ("processor(frames,", 'processor([frame.convert("L") for frame in frames],'),
    ]
    text = "\n".join(lines)
    for old, new in grey:
        text = text.replace(old, new)
    return text.splitlines()


@dataclass(frozen=True)
class Loader:
    """What a task, as its attribute `loader`, says of its models.

    A task whose reader is `TOKENIZER` has the attributes `base` and `max_length` too, and
    `tokenizer` where that is not the base's as it is.

    Attributes:
      auto: the class of `transformers` for the model.
      reader: its class for what makes inputs of pictures or texts.
      pipeline: its name for the task.
      classifies: whether the model has a new head, with a row for each class.
      outputs: what the rows of a new head are called, where the task says it; None where they are
        the classes of the data.
      usage: lines of Python that use the model, for the card.
      unit: what held-out metrics are means over.
    """

    auto: str
    reader: str
    pipeline: str
    classifies: bool = True
    outputs: tuple[str, ...] | None = None
    usage: tuple[str, ...] = ()
    unit: str = "examples"

    @property
    def reads_classes(self) -> bool:
        """Whether the head has a row for each class of the data."""
        return self.classifies and self.outputs is None


TOKENIZER = "AutoTokenizer"
IMAGES = Loader(
    "AutoModelForImageClassification",
    "AutoImageProcessor",
    "image-classification",
    usage=(READS_PICTURES, TELLS_CLASS),
)
CLIPS = Loader(
    "AutoModelForVideoClassification",
    "AutoImageProcessor",
    "video-classification",
    usage=(
        "# frames: PIL pictures of one clip, evenly over its time, as many as the model takes",
        'inputs = processor(frames, return_tensors="pt")',
        TELLS_CLASS,
    ),
)
FRAMES = Loader(
    "AutoModelForImageClassification",
    "AutoImageProcessor",
    "image-classification",
    usage=(
        "# frames: PIL pictures of one clip, evenly over its time",
        'inputs = processor(images=frames, return_tensors="pt")',
        "print(model.config.id2label[int(model(**inputs).logits.mean(0).argmax())])",
    ),
)
"""An image model that sees a clip frame by frame."""
TEXTS = Loader(
    "AutoModelForSequenceClassification",
    TOKENIZER,
    "text-classification",
    usage=(READS_TEXTS, TELLS_CLASS),
)
LANGUAGE = Loader(
    "AutoModelForCausalLM", TOKENIZER, "text-generation", classifies=False, unit="tokens"
)
DENOISER = Loader("UNet2DConditionModel", "", "text-to-image", classifies=False)
