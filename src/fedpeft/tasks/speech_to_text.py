"""Transcripts of speech, by models of the kind of Whisper (Radford et al., 2022,
arXiv:2212.04356)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.core.outputs import COUNTED, LOGITS, Outputs, head_input
from fedpeft.core.sound import Recordings, UnreadableSound
from fedpeft.core.types import Batch, Summed, Table, Tensors, Weighted
from fedpeft.errors import DataError, PlanError, say_count, unknown
from fedpeft.tasks.edit_distance import count_errors
from fedpeft.tasks.hearing import (
    HEARD,
    extractor,
    hear,
    heard_seconds,
    speech_processor,
    speech_tokenizer,
)
from fedpeft.tasks.loader import Loader
from fedpeft.tasks.pretrained import config_of, quiet, speech_model
from fedpeft.tasks.text_classification import (
    pad_tokens,
    padding_token,
    resolve_name,
    tokenizer_settings,
)
from fedpeft.tasks.token_classification import UNCOUNTED, sum_losses
from fedpeft.tasks.vocabulary import check_tokens

TOLD, WRITTEN = "labels", "written"
USUAL = ("transcription", "transcript", "text", "sentence")
"""What columns of transcripts are usually called, the likelier names first."""
MEASURED = 8
"""Clips that are measured together."""
NO_NUMBERS = "clips with samples infinite or not a number"
NO_LENGTH = "clips of no length"
NO_TRANSCRIPT = "clips without a transcript"


@dataclass(frozen=True)
class SpeechToText:
    """Cross entropy of each token of the transcript, given the clip and the tokens before it
    (teacher forcing). Of one clip, the mean over its transcript's tokens, its end among them.

    Held out, `loss` and `accuracy` are over all tokens. `wer` is the share of wrong words in what
    the model writes by itself, always with the likeliest token: words put in, left out or replaced,
    by the true words of all clips together. `cer` is the same of characters. Only these counts
    leave an owner.

    A clip becomes the model's features once, before the first round: float32 (numbers, frames), of
    Whisper 0.96 MB for its 30 seconds. A clip that is longer than the model hears, that cannot be
    read, or that has no transcript, is left out and counted.

    Attributes:
      model: a folder or hub name of a model of the kind of Whisper.
      transcript: the column with what is said; empty for the usual names.
      language: what is spoken, such as "german", for models of many languages; empty for models of
        one, or for what the model guesses of each clip.
      max_answer: tokens that a transcript may have, with those that stand before and after it.
      normalize: whether errors are counted without capitals, marks and what stands in brackets, as
        the appendix C of the paper has it for all languages.

    Raises:
      ValueError: no tokens.
      PlanError: no such model, or one that cannot write so many tokens.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "wer", "cer")
    model: str
    transcript: str = ""
    language: str = ""
    max_answer: int = 128
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.max_answer < 1:
            raise ValueError(f"max_answer is a number of tokens, at least 1, got {self.max_answer}")

    @property
    def base(self) -> str:
        """The folder, or the hub name, that `transformers` loads."""
        return resolve_name(self.model)

    @property
    def loader(self) -> Loader:
        """How `transformers` loads the models, and writes what they hear."""
        spoken = f', language="{self.language}", task="transcribe"' if self.language else ""
        rate = extractor(self.base).sampling_rate
        return Loader(
            "AutoModelForSpeechSeq2Seq",
            "AutoProcessor",
            "automatic-speech-recognition",
            classifies=False,
            usage=(
                f"# samples of one channel from -1 to 1, {rate:,} a second",
                f'inputs = processor(samples, sampling_rate={rate}, return_tensors="pt")',
                f"told = model.generate(**inputs, max_new_tokens={self._most_written}{spoken})",
                "print(processor.batch_decode(told, skip_special_tokens=True))",
            ),
            unit="clips",
        )

    def input_settings(self) -> dict[str, Any]:
        """What becomes of a clip and a transcript before the model sees them, as plain values."""
        return {
            "extractor": extractor(self.base).to_dict(),
            "tokenizer": tokenizer_settings(speech_tokenizer(self.base, self.language)),
        }

    def save_inputs(self, folder: Path) -> None:
        """Write the files of the feature extractor and the tokenizer."""
        speech_processor(self.base, self.language).save_pretrained(str(folder))

    @property
    def _most_written(self) -> int:
        """Tokens that a model may write: what it is given to begin with are none of them."""
        given = len(self._labels([""])[0]) - 1
        return max(1, self.max_answer - given)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """The classes of the data, if they have some, are no matter of the model's."""
        return speech_model(self.base, pretrained)

    def unfit(self, table: Table) -> Mapping[str, Sequence[int]]:
        """By reason the rows of which nothing can be learned; the log names the first of each."""
        clips, texts = self._columns(table)
        self._check_length()
        longest = heard_seconds(self.base)
        found: dict[str, list[int]] = {}
        for at, text in enumerate(texts):
            if why := self._text_fault(text) or _sound_fault(clips, at, longest):
                found.setdefault(why, []).append(at)
        for why, places in found.items():
            getLogger("fedpeft").warning(
                "left out: %s, first %s", say_count(len(places), why), clips.name(places[0])
            )
        return found

    def _columns(self, table: Table) -> tuple[Recordings, Sequence[str | None]]:
        """Clips and transcripts."""
        clips: Any = table.columns.get("audio")
        if not hasattr(clips, "seconds"):
            raise DataError(
                f"speech to text learns from a column of recordings; the data have "
                f"{', '.join(sorted(table.columns))}: set data.audio to the one with their paths"
            )
        names = [self.transcript] if self.transcript else USUAL
        known = [name for name in names if name in table.columns]
        if not known:
            wanted = self.transcript or USUAL[0]
            raise DataError(
                f"{unknown('column', wanted, table.columns)} Set task.transcript to the one with "
                "what is said"
            )
        return clips, table.columns[known[0]]

    def _text_fault(self, text: str | None) -> str:
        """Why a transcript teaches nothing; "" where it does."""
        if text is None or not str(text).strip():
            return NO_TRANSCRIPT
        if len(self._labels([str(text)])[0]) > self.max_answer:
            return f"clips with transcripts of more than {self.max_answer} tokens (task.max_answer)"
        return ""

    def _check_length(self) -> None:
        limit = int(getattr(config_of(self.base), "max_target_positions", 0) or 0)
        if limit and self.max_answer >= limit:  # the token that begins a transcript counts too
            raise PlanError(
                f"max_answer = {self.max_answer}, but {self.model!r} writes at most {limit - 1} "
                "tokens"
            )

    def prepare(self, table: Table) -> Tensors:
        """`input_features` float32 (n, numbers, frames); `labels` int32 (n, tokens of the longest
        transcript), -100 after its end; `label` if any.

        Raises:
          DataError: a column is not there, or a clip or a transcript is none.
        """
        clips, texts = self._columns(table)
        if bad := self.unfit(table):
            why, places = next(iter(bad.items()))
            raise DataError(f"{say_count(len(places), why)} of {len(table)}: leave them out")
        rows = self._told([str(text) for text in texts])
        read = speech_tokenizer(self.base, self.language)
        check_tokens(self.model, self.base, read, rows, rows != UNCOUNTED)
        heard = torch.empty(len(table), *self.example()[HEARD].shape[1:])
        for at in range(len(table)):
            heard[at] = hear(self.base, clips[at])
        made = {HEARD: heard, TOLD: rows}
        return made if table.labels is None else {**made, "label": table.labels}

    def _labels(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of transcripts, without the one that the model's decoder begins with by itself."""
        start = getattr(config_of(self.base), "decoder_start_token_id", None)
        rows = speech_tokenizer(self.base, self.language)(list(texts))["input_ids"]
        return [list(row[1:] if row and row[0] == start else row) for row in rows]

    def _told(self, texts: Sequence[str]) -> Tensor:
        pad = padding_token(self.base)
        after = pad_tokens([row or [pad] for row in self._labels(texts)], pad)
        return after["input_ids"].masked_fill(~after["attention_mask"], UNCOUNTED)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """The rows, cut to the longest transcript in the batch."""
        longest = int((rows[TOLD] != UNCOUNTED).sum(1).max())
        return {HEARD: rows[HEARD], TOLD: rows[TOLD][:, : max(1, longest)].long()}

    def example(self) -> Batch:
        """A clip of silence in which a word is said."""
        read = extractor(self.base)
        silence = torch.zeros(1, read.feature_size, read.nb_max_frames)
        return {HEARD: silence, TOLD: self._told(["a"]).long()}

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        told = batch[TOLD]
        with head_input(model, head) as seen:
            logits: Tensor = model(
                input_features=batch[HEARD],
                decoder_input_ids=self._shifted(model, told),
                use_cache=False,
            ).logits
        return {LOGITS: logits, COUNTED: told != UNCOUNTED, **seen}

    def _shifted(self, model: nn.Module, told: Tensor) -> Tensor:
        """What the decoder reads: its first token, and each token but the last."""
        config: Any = model.config
        start = torch.full_like(told[:, :1], config.decoder_start_token_id)
        before = torch.cat([start, told[:, :-1]], dim=1)
        return before.masked_fill(before == UNCOUNTED, padding_token(self.base))

    def forward_measured(self, model: nn.Module, batch: Batch) -> Outputs:
        """The pass with what the model writes by itself, `written` (batch, tokens)."""
        writer: Any = model
        spoken = {"language": self.language, "task": "transcribe"} if self.language else {}
        with quiet():  # it tells of settings that models are saved with
            written = writer.generate(
                input_features=batch[HEARD],
                max_new_tokens=self._most_written,
                do_sample=False,
                num_beams=1,
                **spoken,
            )
        return {**self.forward(model, batch), WRITTEN: written}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        total, counted = sum_losses(outputs, batch)
        return total / counted.clamp_min(1)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Summed]:
        total, counted = sum_losses(outputs, batch)
        right = (outputs[LOGITS].argmax(-1) == batch[TOLD]) & outputs[COUNTED]
        found = {"loss": Summed(total, counted), "accuracy": Summed(right.sum(1), counted)}
        return {**found, **self._errors(outputs[WRITTEN], batch[TOLD])}

    def _errors(self, written: Tensor, labels: Tensor) -> dict[str, Summed]:
        true = self._texts([row[row != UNCOUNTED].tolist() for row in labels.cpu()])
        told = self._texts(written.tolist())
        pairs = list(zip(told, true, strict=True))
        counts = {
            "wer": [(count_errors(a.split(), b.split()), len(b.split())) for a, b in pairs],
            "cer": [(count_errors(a, b), len(b)) for a, b in pairs],
        }
        by_name = {name: torch.tensor(rows, device=labels.device) for name, rows in counts.items()}
        return {name: Summed(one[:, 0], one[:, 1]) for name, one in by_name.items()}

    def _texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Tokens as texts, with one blank between words."""
        read = speech_tokenizer(self.base, self.language)
        texts = read.batch_decode(rows, skip_special_tokens=True)
        if self.normalize:
            from transformers.models.whisper.english_normalizer import BasicTextNormalizer

            texts = [BasicTextNormalizer()(text) for text in texts]
        return [" ".join(text.split()) for text in texts]

    def check_sums(self, sums: Mapping[str, Weighted], examples: int) -> None:
        """Raises ValueError for fewer errors than none, or more words than so many clips have."""
        for name in ("wer", "cer"):
            told = sums.get(name, Weighted(0.0, 0.0))
            if min(told.total, told.weight) < 0:
                raise ValueError(f"its {name} counts {told.total:g} errors of {told.weight:g}")
        told, most = sums.get("wer", Weighted(0.0, 0.0)), examples * self.max_answer
        if told.weight > most or told.total > told.weight + most:
            raise ValueError(
                f"its wer counts {told.total:g} errors of {told.weight:g} words, and {examples:,} "
                f"clips have at most {most:,}"
            )

    def chunks(self, batch: Batch) -> Iterator[Batch]:
        """Some clips at a time."""
        for at in range(0, len(batch[TOLD]), MEASURED):
            yield self.batch({name: x[at : at + MEASURED] for name, x in batch.items()}, None)


def _sound_fault(clips: Recordings, at: int, longest: float) -> str:
    """Why nothing is heard of a clip; "" where something is."""
    try:
        seconds = clips.seconds(at)
        if seconds > longest:  # by its head: a file of hours is not decoded
            return f"clips longer than the {longest:g} s that the model hears"
        samples = torch.from_numpy(clips[at].samples) if seconds else torch.empty(0)
    except UnreadableSound as error:
        return str(error)
    if not len(samples):
        return NO_LENGTH
    return "" if bool(samples.isfinite().all()) else NO_NUMBERS
