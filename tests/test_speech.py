"""Transcripts of speech: what is heard and told, which clips are left out, what errors count, and
runs on spoken digits that tones stand for."""

import json
import logging
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import done
from method_models import losses_of
from sound_files import RATE, write_floats, write_hours, write_ints, write_table
from text_runs import RUN, Exported, check_processes, check_stacked, save_sequence_model

from fedpeft import DataError, PlanError, evaluate, open_site, read_plan
from fedpeft.core.sound import Sound
from fedpeft.core.types import Table, Weighted
from fedpeft.data.recordings import Clips
from fedpeft.forecasts.forecast import forecast
from fedpeft.oneshot.fingerprints import transforms_digest
from fedpeft.runs.folder import read_rounds
from fedpeft.tasks.edit_distance import count_errors
from fedpeft.tasks.hearing import extractor, hear, resample, speech_tokenizer
from fedpeft.tasks.speech_to_text import MEASURED, WRITTEN, SpeechToText
from tools.spoken_digits import write_clips, write_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and two held-out clips of each of three speakers, and a narrow Whisper."""
    found = tmp_path_factory.mktemp("spoken")
    write_clips(found / "digits", clips=6, held_out=2)
    write_model(found / "whisper", width=16)
    return found


def task_of(root: Path, **other: Any) -> SpeechToText:
    return SpeechToText(str(root / "whisper"), max_answer=8, **other)


def run_of(root: Path, **other: Any) -> dict[str, Any]:
    task = {"name": "speech-to-text", "model": str(root / "whisper"), "max_answer": 8}
    data = {"name": "table", "path": str(root / "digits"), "label": "none"}
    owners = {"name": "column", "column": "speaker"}
    return {**RUN, "task": task, "data": data, "partition": owners, **other}


def table_of(root: Path, texts: list[Any]) -> Table:
    files = sorted((root / "digits").rglob("*.wav"))[: len(texts)]
    return Table({"audio": Clips(files, range(len(files))), "transcription": texts})


def test_a_clip_is_heard_and_a_transcript_is_told(root: Path) -> None:
    from transformers import AutoFeatureExtractor

    rows = task_of(root).prepare(table_of(root, ["one two", "nine"]))
    assert rows["labels"].tolist() == [[5, 6, 3], [13, 3, -100]]
    assert rows["input_features"].shape == (2, 40, 100)
    sound = table_of(root, ["", ""]).columns["audio"][1]
    theirs = AutoFeatureExtractor.from_pretrained(root / "whisper")
    want = theirs(resample(sound, RATE), sampling_rate=RATE, return_tensors="np")["input_features"]
    np.testing.assert_array_equal(rows["input_features"][1].numpy(), want[0])


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_another_rate_keeps_a_tone(rate: int) -> None:
    at = np.arange(rate) / rate
    made = resample(Sound(np.sin(2 * np.pi * 440 * at).astype(np.float32), rate), RATE)
    want = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    assert made.dtype == np.float32 and len(made) == RATE
    # the filter begins and ends in silence
    assert np.abs(made - want)[500:-500].max() < 0.01


def test_the_loss_is_that_of_transformers(root: Path) -> None:
    task = task_of(root)
    model: Any = task.build([]).eval()
    rows = task.prepare(table_of(root, ["one two", "nine"]))
    batch = task.batch(rows, None)
    for k, loss in enumerate(losses_of(task, model.requires_grad_(False), batch)):
        alone = task.batch({name: x[k : k + 1] for name, x in rows.items()}, None)
        assert float(loss) == pytest.approx(float(model(**alone).loss), rel=1e-5)


@pytest.mark.parametrize(
    ("told", "true", "errors"),
    [
        ("", "", 0),
        ("a b", "", 2),
        ("", "a b c", 3),
        ("a x c", "a b c", 1),
        ("a c", "a b c", 1),
        ("b a c d", "a b c", 3),
        ("the cat sat on mat", "the cat sat on the mat", 1),
    ],
)
def test_errors_are_counted_by_hand(told: str, true: str, errors: int) -> None:
    assert count_errors(told.split(), true.split()) == errors


def test_errors_of_characters() -> None:
    assert count_errors("sitting", "kitten") == 3 and count_errors("sunday", "saturday") == 3


@pytest.mark.skipif(find_spec("jiwer") is None, reason="jiwer is not installed")
def test_errors_are_those_of_jiwer() -> None:
    import jiwer

    draw = np.random.default_rng(3)
    for _ in range(50):
        told, true = (" ".join(draw.choice(list("abc"), size=k)) for k in draw.integers(1, 9, 2))
        found = jiwer.process_words(true, told)
        most = found.substitutions + found.deletions + found.insertions
        assert count_errors(told.split(), true.split()) == most


def test_words_and_characters_of_all_clips_count_together(root: Path) -> None:
    """Written: "one", "three nine" and nothing; said: "one two", "three nine" and "six"."""
    task = task_of(root)
    batch = task.batch(task.prepare(table_of(root, ["one two", "three nine", "six"])), None)
    outputs = task.forward(task.build([]).eval().requires_grad_(False), batch)
    written = torch.tensor([[2, 5, 3, 0], [2, 7, 13, 3], [2, 3, 0, 0]])
    found = task.metrics({**outputs, WRITTEN: written}, batch)
    assert found["wer"].totals.tolist() == [1, 0, 1] and found["wer"].weights.tolist() == [2, 2, 1]
    assert found["cer"].totals.tolist() == [4, 0, 3] and found["cer"].weights.tolist() == [7, 10, 3]


def test_what_is_written_is_what_transformers_writes(root: Path) -> None:
    task = task_of(root)
    model: Any = task.build([]).eval().requires_grad_(False)
    batch = task.batch(task.prepare(table_of(root, ["one"] * (MEASURED + 2))), None)
    told = model.generate(input_features=batch["input_features"], max_new_tokens=8)
    mask = torch.ones(MEASURED + 2)
    outputs = {**task.forward(model, batch), WRITTEN: told}
    want = task.metrics(outputs, batch)
    found = evaluate(task, model, {}, [{**batch, "mask": mask}])
    assert [len(part["labels"]) for part in task.chunks(batch)] == [MEASURED, 2]
    for name in task.measures:
        assert found[name].total == pytest.approx(float(want[name].totals.sum()), rel=1e-5)
        assert found[name].weight == float(want[name].weights.sum())


def test_marks_and_capitals_may_not_count(root: Path) -> None:
    plain, kept = task_of(root, normalize=True), task_of(root)
    rows = torch.tensor([[5, 6, 3]])
    assert plain._texts(rows.tolist()) == kept._texts(rows.tolist()) == ["one two"]


def odd_folder(root: Path) -> Path:
    """One clip that is fit, and one of each kind that is not; and their table."""
    fit = [(2**13,)] * 1600
    for name, width in (("eight", 1), ("sixteen", 2), ("wide", 3)):
        write_ints(root / f"{name}.wav", [(200,)] * 1600, width)
    write_ints(root / "stereo.wav", [(200, -200)] * 1600)
    write_ints(root / "none.wav", [])
    (root / "text.wav").write_text("a text that somebody renamed")
    write_hours(root / "hours.wav", 2)
    for name in ("silent", "long"):
        write_ints(root / f"{name}.wav", fit)
    names = ("eight", "sixteen", "wide", "stereo", "none", "text", "hours", "gone")
    rows = [(f"{name}.wav", "one two") for name in names]
    write_table(root, [*rows, ("silent.wav", "  "), ("long.wav", "one " * 12)])
    return root


def test_clips_that_teach_nothing_are_left_out_and_counted(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {"name": "table", "path": str(odd_folder(tmp_path)), "label": "none"}
    plan = read_plan(run_of(root, data={**data, "test_fraction": 0}))
    with caplog.at_level(logging.WARNING, "fedpeft"):
        found = plan.examples()
    assert len(plan.task.prepare(found.train)["labels"]) == 4
    assert sum(found.left_out.values()) == 6
    lines = [one for one in caplog.messages if one.startswith("left out: 1 ")]
    for why in (
        "clip of no length, first none.wav",
        "clip that cannot be read as sound, first text.wav",
        "clip longer than the 1 s that the model hears, first hours.wav",
        "clip whose file is not there, first gone.wav",
        "clip without a transcript, first silent.wav",
        "clip with transcripts of more than 8 tokens (task.max_answer), first long.wav",
    ):
        assert f"left out: 1 {why}" in lines


@pytest.mark.skipif(find_spec("soundfile") is None, reason="soundfile is not installed")
def test_floats_that_are_no_numbers_are_left_out(root: Path, tmp_path: Path) -> None:
    write_floats(tmp_path / "a.wav", [0.1] * 1600)
    write_floats(tmp_path / "b.wav", [0.1, math.nan] * 800)
    clips = Clips([tmp_path / "a.wav", tmp_path / "b.wav"], range(2))
    table = Table({"audio": clips, "text": ["one", "one"]})
    assert task_of(root).unfit(table) == {"clips with samples infinite or not a number": [1]}


def test_data_and_models_that_do_not_fit(root: Path, tmp_path: Path) -> None:
    task = task_of(root)
    with pytest.raises(DataError, match=r"a column of recordings.*set data\.audio"):
        task.prepare(Table({"audio": ["a.wav"], "text": ["one"]}))
    with pytest.raises(DataError, match=r"Set task\.transcript"):
        task.prepare(Table({"audio": table_of(root, [""]).columns["audio"], "said": ["one"]}))
    with pytest.raises(DataError, match="1 clip without a transcript of 1: leave them out"):
        task.prepare(table_of(root, [None]))
    with pytest.raises(PlanError, match="at least 1, got 0"):
        read_plan({"task": {"name": "speech-to-text", "model": "x", "max_answer": 0}})
    with pytest.raises(PlanError, match=r"max_answer = 16, but .* writes at most 15 tokens"):
        SpeechToText(str(root / "whisper"), max_answer=16).unfit(table_of(root, ["one"]))
    with pytest.raises(PlanError, match=r"writes no language .*leave out task\.language"):
        task_of(root, language="german").prepare(table_of(root, ["one"]))
    bart = save_sequence_model(tmp_path / "bart", "bart")
    with pytest.raises(PlanError, match=r"the feature extractor of .* cannot be loaded"):
        hear(str(bart), Sound(np.zeros(9, np.float32), RATE))
    with pytest.raises(PlanError, match="name a model of the kind of Whisper"):
        SpeechToText(str(bart)).build([])


@pytest.mark.parametrize(
    ("name", "total", "weight"),
    [("wer", -1.0, 3.0), ("cer", 1.0, -3.0), ("wer", 0.0, 17.0), ("wer", 20.0, 3.0)],
)
def test_an_owner_cannot_count_what_no_owner_has(
    root: Path, name: str, total: float, weight: float
) -> None:
    task = task_of(root)
    task.check_sums({"wer": Weighted(19.0, 3.0), "cer": Weighted(9.0, 9.0)}, 2)
    with pytest.raises(ValueError, match=f"its {name} counts"):
        task.check_sums({name: Weighted(total, weight)}, 2)


def test_lora_goes_into_attention_of_both_sides(root: Path) -> None:
    plan = read_plan(run_of(root))
    names = plan.method.names(open_site(plan).model)
    layers = {name.split(".lora_")[0] for name in names}
    assert len(names) == 2 * len(layers)
    # two layers with self-attention on either side, and the decoder's that listens
    assert len(layers) == 2 * (2 + 2 + 2)
    assert sum("encoder_attn" in name for name in layers) == 4


@pytest.mark.slow
def test_clients_in_a_stack_train_it(root: Path) -> None:
    check_stacked(run_of(root))


@pytest.mark.slow
def test_a_forecast_writes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To write all that a model may takes minutes where no shape says where it ends."""
    plan = read_plan(run_of(root))
    monkeypatch.setattr(
        "transformers.WhisperForConditionalGeneration.generate", lambda *_, **__: 1 / 0
    )
    told = forecast(plan).training
    assert told.evaluation.flop > 0 and not told.error


@pytest.mark.slow
def test_other_processes_train_it(root: Path) -> None:
    check_processes(run_of(root))


@pytest.mark.parametrize(
    "merged", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["adapter", "merged"]
)
def test_an_export_is_loaded_by_its_card_and_writes_the_same(
    root: Path, tmp_path: Path, merged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Exported(run_of(root, rounds=1), tmp_path, merged)
    batch, outputs = run.forward()
    model, processor = run.names["model"], run.names["processor"]
    with torch.inference_mode():
        told = model(input_features=batch["input_features"], labels=batch["labels"]).logits
        torch.testing.assert_close(told, outputs["logits"], atol=1e-4, rtol=0)
        samples = Clips([next((root / "digits/test/anna").glob("*.wav"))], [0])[0].samples
        exec(run.usage, {"model": model, "processor": processor, "samples": samples})
    assert capsys.readouterr().out.startswith("['")
    assert "| wer on held-out clips |" in run.card


def test_a_language_stands_before_each_transcript(tmp_path: Path) -> None:
    write_model(tmp_path / "whisper", width=16)
    _save_whisper_tokenizer(tmp_path / "whisper")
    plain, german = (
        SpeechToText(str(tmp_path / "whisper"), language=name, max_answer=12)
        for name in ("", "german")
    )
    (row,) = german._labels(["ab"])
    assert german._texts([row]) == plain._texts([row]) == ["ab"]
    read = speech_tokenizer(german.base, german.language)
    assert read.convert_ids_to_tokens(row) == [
        *("<|de|>", "<|transcribe|>", "<|notimestamps|>", "a", "b", "<|endoftext|>")
    ]
    assert len(plain._labels(["ab"])[0]) == 4
    with pytest.raises(PlanError, match=r"task\.language = 'klingon'"):
        SpeechToText(str(tmp_path / "whisper"), language="klingon")._labels(["a"])


def test_sites_compare_the_extractor_and_the_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "whisper"
    write_model(folder, width=16)
    task = SpeechToText(str(folder))
    before, file = transforms_digest(task), folder / "preprocessor_config.json"
    assert transforms_digest(task) == before
    assert "nine" in task.input_settings()["tokenizer"]["does"]["model"]["vocab"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "dither": 0.5}))
    extractor.cache_clear()
    assert transforms_digest(task) != before


def _save_whisper_tokenizer(folder: Path) -> None:
    """Whisper's own tokenizer, of single letters and all its languages."""
    import json

    from transformers import WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    letters = [chr(k) for k in range(33, 127)]
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)]
    special += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    special += ["<|nospeech|>", "<|notimestamps|>"]
    vocabulary = {token: k for k, token in enumerate([*letters, *special])}
    read = WhisperTokenizer(vocab=vocabulary, merges=[])
    read.add_tokens(special, special_tokens=True)
    read.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    start = vocabulary["<|startoftranscript|>"]
    config |= {"decoder_start_token_id": start, "vocab_size": len(vocabulary)}
    (folder / "config.json").write_text(json.dumps(config))


def scores(folder: Any) -> list[Mapping[str, float]]:
    return [line["held_out"] for line in read_rounds(folder) if line["held_out"]]


@pytest.mark.slow
@pytest.mark.timeout(600)  # two minutes where two cores do the work of six
def test_digits_of_tones_are_learned(tmp_path: Path) -> None:
    write_clips(tmp_path / "digits")
    write_model(tmp_path / "whisper")
    local = {"epochs": 3, "batch_size": 16, "lr": 0.001, "optimizer": "adamw"}
    made = done(
        tmp_path / "run",
        **run_of(tmp_path, method="full", rounds=20, local=local, evaluate_every=5),
    )
    found = scores(made.folder)
    assert found[-1]["loss"] < 0.3 * found[0]["loss"]
    assert found[-1]["wer"] < 0.2 < 0.7 < found[0]["wer"]
