"""Video classification: what models see of clips, methods, sizes, averages over frames, exports."""

import re
from logging import WARNING
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import SIZES, greys, save_gif, save_video_model
from PIL import Image

from fedpeft import DataError, PlanError, read_plan
from fedpeft.compute.trainable import write
from fedpeft.core.outputs import FEATURES, LOGITS
from fedpeft.core.types import Table
from fedpeft.data.moving import MovingDigits
from fedpeft.export.export import export_run
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.execute import execute, open_engine, open_run_site
from fedpeft.runs.folder import create
from fedpeft.tasks.image_classification import ImageClassification
from fedpeft.tasks.video_classification import VideoClassification

CLASSES = ("a", "b", "c")
LABEL = torch.zeros(1, dtype=torch.int64)


def seen(task: VideoClassification, *clips: Any) -> torch.Tensor:
    """What the model is given of clips, without augmentation."""
    rows = task.prepare(Table({"video": list(clips), "label": LABEL.repeat(len(clips))}))
    x: torch.Tensor = task.batch(rows, None)["pixel_values"]
    return x


def processors() -> dict[str, Any]:
    import transformers as hf

    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return {
        "videomae": hf.VideoMAEImageProcessorPil(**sizes, **imagenet),
        "vivit": hf.VivitImageProcessor(**{**sizes, "size": {"shortest_edge": 18}}),
        "timesformer": hf.VideoMAEImageProcessorPil(
            **sizes, image_mean=[0.45] * 3, image_std=[0.225] * 3
        ),
    }


# The processor of V-JEPA 2 needs torchvision.
@pytest.mark.parametrize("family", [family for family in SIZES if family != "vjepa2"])
def test_models_see_what_their_processors_make(family: str, tmp_path: Path) -> None:
    folder = save_video_model(tmp_path, family)
    processor = processors()[family]
    processor.save_pretrained(folder)
    task = VideoClassification(str(folder))
    draws = np.random.default_rng(1)
    for size in ((35, 46), (16, 16), (25, 20), (10, 15)):
        noise = [draws.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(4)]
        frames = [Image.fromarray(one).resize(size) for one in noise]
        theirs = processor(frames, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(seen(task, frames), theirs, rtol=0, atol=1e-5)


def test_sizes_and_frames_are_the_models(tmp_path: Path) -> None:
    mae = VideoClassification(str(save_video_model(tmp_path / "a", "videomae")))
    assert mae.seen_frames == 4 and mae.example()["pixel_values"].shape == (1, 4, 3, 16, 16)
    # positions of VideoMAE are computed, so that it is made for other clips
    wide = VideoClassification(mae.model, frames=6, size=24)
    model: Any = wide.build(CLASSES)
    assert model.config.num_frames == 6 and model.config.image_size == 24
    assert model(pixel_values=wide.example()["pixel_values"]).logits.shape == (1, 3)
    former = VideoClassification(str(save_video_model(tmp_path / "b", "timesformer")), size=32)
    assert former.build(CLASSES)(pixel_values=former.example()["pixel_values"]).logits.shape[1] == 3
    with pytest.raises(
        PlanError, match=r"does not take 8 frames of 16 by 16 pixels.*time_embeddings"
    ):
        VideoClassification(former.model, frames=8).build(CLASSES)
    vivit = str(save_video_model(tmp_path / "c", "vivit"))
    with pytest.raises(PlanError, match=r"does not take 4 frames of 32 by 32 pixels.*Leave out"):
        VideoClassification(vivit, size=32).build(CLASSES)
    for model_of in (vivit, mae.model):
        with pytest.raises(PlanError, match="reads 2 frames at a time; set it to a multiple of 2"):
            VideoClassification(model_of, frames=5).build(CLASSES)
    with pytest.raises(ValueError, match="frames and size must not be negative"):
        VideoClassification(frames=-1)


def test_v_jepa_2_is_made_for_the_clips_that_it_gets(tmp_path: Path) -> None:
    task = VideoClassification(str(save_video_model(tmp_path, "vjepa2")))
    assert task.seen_frames == 4 and task.example()["pixel_values"].shape == (1, 4, 3, 16, 16)
    # It counts places on the grid of its configuration, without an error for another one.
    wide: Any = VideoClassification(task.model, frames=6, size=24)
    model = wide.build(CLASSES)
    assert model.config.crop_size == 24 and model.config.frames_per_clip == 6
    layer = model.vjepa2.encoder.layer[0].attention
    assert layer.grid_size == 3 and layer.grid_depth == 3
    with pytest.raises(PlanError, match="reads 2 frames at a time"):
        VideoClassification(task.model, frames=5).build(CLASSES)


REFUSED = {
    ("vjepa2", "prompt"): "is no plain vision transformer",
    ("timesformer", "prompt"): "a batch does not go through the model",
    ("timesformer", "perfix"): "no attention with linear layers of their own for keys",
}
METHODS = (
    "head",
    "bias",
    "layernorm",
    "adapter",
    "lora",
    "ia3",
    "vera",
    "prompt",
    "perfix",
    "full",
)


@pytest.mark.slow
@pytest.mark.parametrize("family", SIZES)
def test_methods_train_all_that_they_say_or_refuse(family: str, tmp_path: Path) -> None:
    task = {"name": "video-classification", "model": str(save_video_model(tmp_path, family))}
    clips = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    batch = {"pixel_values": clips, "label": torch.tensor([0, 1])}
    for method in METHODS:
        plan = read_plan({"task": task, "method": method, "data": "moving"})
        if why := REFUSED.get((family, method)):
            with pytest.raises(PlanError, match=why):
                plan.model(CLASSES)
            continue
        model = plan.model(CLASSES)
        loss = plan.task.losses(plan.task.forward(model, batch), batch).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        marked = {n: x.grad for n, x in model.named_parameters() if x.requires_grad}
        assert marked and all(grad is not None for grad in marked.values()), (method, list(marked))


def test_a_prompt_begins_as_long_as_a_patch_of_frames_says(tmp_path: Path) -> None:
    """Patches of 2 frames of 8 by 8: v = √(6 / (3·128 + 32)) = 0.1201."""
    task = {"name": "video-classification", "model": str(save_video_model(tmp_path, "videomae"))}
    plan = read_plan({"task": task, "method": {"name": "prompt", "tokens": 200}, "data": "moving"})
    model = plan.model(CLASSES)
    prompts = [x for name, x in model.named_parameters() if name.endswith("prompt")]
    longest = max(float(x.detach().abs().max()) for x in prompts)
    assert 0.119 < longest <= (6 / (3 * 128 + 32)) ** 0.5


def test_an_image_model_sees_frames_one_by_one() -> None:
    task, alone = VideoClassification(size=8), ImageClassification(size=8)
    assert task.seen_frames == 8 and task.loader.auto == "AutoModelForImageClassification"
    model = alone.build(CLASSES).eval()
    frame = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    rows = alone.prepare(Table({"image": [frame], "label": LABEL}))
    picture = alone.forward(model, alone.batch(rows, None), "classifier")
    batch = {"pixel_values": seen(task, [frame] * 8), "label": LABEL}
    still = task.forward(model, batch, "classifier")
    torch.testing.assert_close(still[LOGITS], picture[LOGITS], rtol=0, atol=1e-5)
    # as ViT's head reads the first token, which is its feature
    assert still[FEATURES].shape == picture[FEATURES].shape
    torch.testing.assert_close(still[FEATURES], picture[FEATURES], rtol=0, atol=1e-5)


def test_an_average_over_frames_is_at_chance_where_time_matters() -> None:
    """Whatever the weights: the four clips of a digit have one set of frames."""
    task = VideoClassification(size=8)
    test = MovingDigits().load().test
    some = Table({"video": test.columns["video"][:12], "label": test.labels[:12]})  # type: ignore[index]
    rows = task.prepare(some)
    model = task.build(("a", "b", "c", "d")).eval()
    with torch.no_grad():
        logits = task.forward(model, task.batch(rows, None))[LOGITS].reshape(3, 4, 4)
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits), rtol=0, atol=1e-4)


def test_all_frames_of_a_clip_are_mirrored_alike() -> None:
    task = VideoClassification(size=8, flip=True)
    video = torch.randint(0, 256, (12, 8, 1, 8, 8), dtype=torch.uint8)
    rows = task.prepare(Table({"video": video, "label": LABEL.repeat(12)}))
    plain = task.batch(rows, None)["pixel_values"]
    drawn = task.batch(rows, torch.Generator().manual_seed(1))["pixel_values"]
    turned = [torch.equal(one, other.flip(-1)) for one, other in zip(drawn, plain, strict=True)]
    same = [torch.equal(one, other) for one, other in zip(drawn, plain, strict=True)]
    assert all(a != b for a, b in zip(turned, same, strict=True)) and 0 < sum(turned) < 12


def test_clips_of_few_frames_are_told(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    task = VideoClassification(str(save_video_model(tmp_path, "videomae")))
    with caplog.at_level(WARNING, "fedpeft"):
        x = seen(task, greys([0, 200]), greys([0, 50, 100, 150]), greys([70]))
    assert "of 3 clips, 2 with fewer than 4 frames: some of these are taken several times" in (
        caplog.messages
    )
    assert [round(float(frame[0, 0, 0]) * 127.5 + 127.5) for frame in x[0]] == [0, 0, 200, 200]
    assert [round(float(frame[0, 0, 0]) * 127.5 + 127.5) for frame in x[1]] == [0, 50, 100, 150]
    long = torch.arange(8, dtype=torch.uint8).reshape(1, 8, 1, 1, 1).expand(1, 8, 1, 4, 4)
    rows = task.prepare(Table({"video": long, "label": LABEL}))
    assert rows["video"].shape == (1, 4, 3, 16, 16)
    assert rows["video"][0, :, 0, 0, 0].tolist() == [1, 3, 5, 7]


def test_what_is_no_clip_is_an_error() -> None:
    task = VideoClassification(size=8)
    with pytest.raises(DataError, match="clip 1 has no frame"):
        seen(task, greys([1]), [])
    for wrong in (torch.zeros(1, 8, 8, 8), torch.zeros(1, 0, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(DataError, match="videos are uint8 tensors of shape"):
            task.prepare(Table({"video": wrong, "label": LABEL}))
    with pytest.raises(DataError, match="learns from a column 'video'"):
        task.prepare(Table({"image": torch.zeros(1, 1, 8, 8), "label": LABEL}))


def test_held_out_clips_are_measured_a_few_at_a_time() -> None:
    task = VideoClassification(size=8)
    batch = {"pixel_values": torch.zeros(40, 1), "label": torch.arange(40)}
    assert [len(part["label"]) for part in task.chunks(batch)] == [16, 16, 8]


def write_federation(root: Path, model: Path, method: str) -> dict[str, Any]:
    """Two classes of clips, growing light or dark, at two clients."""
    for name, values in (("dawn", [10, 80, 150, 220]), ("dusk", [220, 150, 80, 10])):
        for place in range(10):
            save_gif(root / name / f"{place}.gif", [v + place for v in values], (16, 16))
    return {
        "task": {"name": "video-classification", "model": str(model)},
        "data": {"name": "videos", "path": str(root)},
        "partition": {"name": "iid", "clients": 2},
        "method": method,
        "local": {"epochs": 4, "batch_size": 4, "lr": 0.01, "optimizer": "adamw"},
        "rounds": 3,
        "cohort": 2,
        "evaluate_every": 3,
    }


@pytest.mark.slow
# peft's own, when the lines of a card load an adapter
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_federation_of_clips_is_exported_as_its_card_says(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a card has the name of the base's folder alone
    model = save_video_model(tmp_path / "base", "videomae")
    processors()["videomae"].save_pretrained(model)
    plan = read_plan(write_federation(tmp_path / "clips", model, method))
    folder = create(plan, tmp_path / "run")
    site = open_run_site(plan)
    for _ in execute(folder, site, open_engine(folder, site)):
        pass
    out = tmp_path / "out"
    export_run(folder.path, out)
    card = (out / "README.md").read_text()
    assert 'pipeline_tag: "video-classification"' in card
    loads, reads = re.findall(r"```python\n(.*?)```", card, re.S)[:2]
    names: dict[str, Any] = {"frames": greys([10, 80, 150, 220], (16, 16))}
    exec(loads + reads, names)
    told = names["model"](**names["inputs"]).logits
    saved = load_checkpoint(folder.checkpoint, plan)
    assert saved is not None
    write(site.model, saved.state.params)
    task: Any = plan.task
    given = seen(task, names["frames"])
    torch.testing.assert_close(names["inputs"]["pixel_values"], given, rtol=0, atol=1e-5)
    ours = task.forward(site.model.eval(), {"pixel_values": given, "label": LABEL})[LOGITS]
    torch.testing.assert_close(told, ours, rtol=0, atol=1e-5)
    # dawn and dusk have the same frames, in the other order
    backwards = {"frames": names["frames"][::-1], **{k: names[k] for k in ("model", "processor")}}
    exec(reads, backwards)
    turned = names["model"](**backwards["inputs"]).logits
    assert (told.argmax(-1).item(), turned.argmax(-1).item()) == (0, 1)
