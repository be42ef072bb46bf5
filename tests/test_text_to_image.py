"""Text to image: what is learned of captions and pictures, how it is measured, drawn and
exported."""

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from captioned import COLOURS, SIDE, changes, save_diffusion, save_table
from method_models import losses_of
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from fedpeft import (
    Cohort,
    DataError,
    InProcess,
    PlanError,
    Processes,
    RunError,
    federate,
    open_site,
    read_plan,
    start,
)
from fedpeft.cli.app import app
from fedpeft.core.seeds import generator
from fedpeft.core.types import Table
from fedpeft.data.splits import hold_out
from fedpeft.evaluation.measure import measure
from fedpeft.export.export import export_run
from fedpeft.runs.execute import execute, open_engine, open_run_site
from fedpeft.runs.folder import create
from fedpeft.tasks.diffusion import Noising, autoencoder, latents_of, squares
from fedpeft.tasks.taef2 import Taef2
from fedpeft.tasks.text_to_image import TextToImage


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "latents"


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_diffusion(tmp_path_factory.mktemp("diffusion"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_table(tmp_path_factory.mktemp("squares"))


class Silent(nn.Module):
    """A denoiser that tells nothing: its loss is the mean square of what is to be told."""

    def forward(self, x: Tensor, time: Tensor, caption: Tensor) -> Any:
        assert len(x) == len(time) == len(caption)
        return type("Out", (), {"sample": torch.zeros_like(x)})


def rows(n: int = 3) -> dict[str, Tensor]:
    draws = generator(1)
    caption, latent = (
        torch.randn(n, 6, 8, generator=draws),
        torch.randn(n, 4, 4, 4, generator=draws),
    )
    return {"latent": latent, "caption": caption, "row": torch.arange(n)}


def test_noise_is_mixed_in_as_the_schedule_says() -> None:
    x, noise, time = torch.tensor([[[[2.0]]]]), torch.tensor([[[[5.0]]]]), torch.tensor([1])
    for tells, told in (("epsilon", 5.0), ("sample", 2.0), ("v_prediction", 0.6 * 5 - 0.8 * 2)):
        noisy, wanted = Noising(torch.tensor([1.0, 0.36]), tells)(x, noise, time)
        assert noisy.item() == pytest.approx(0.6 * 2 + 0.8 * 5)
        assert wanted.item() == pytest.approx(told)


def test_training_draws_time_and_noise_from_the_generator(diffusion: Path) -> None:
    task = TextToImage(str(diffusion))
    one, same, other = (task.batch(rows(), generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["time"], other["time"]) and not torch.equal(
        one["told"], other["told"]
    )
    assert one["time"].shape == (3, 1) and one["noisy"].shape == one["told"].shape == (
        3,
        1,
        4,
        4,
        4,
    )
    losses = losses_of(task, Silent(), one)
    torch.testing.assert_close(losses, one["told"].square().mean((1, 2, 3, 4)))


def test_what_is_held_out_is_measured_the_same_each_time(diffusion: Path) -> None:
    """Noise belongs to the row, wherever it stands in a batch; times are spread over the schedule's
    thousand."""
    task = TextToImage(str(diffusion), measured_at=4)
    whole = task.batch(rows(), None)
    assert whole["time"].tolist() == [[125, 375, 625, 875]] * 3
    alone = task.batch({name: x[2:] for name, x in rows().items()}, None)
    assert all(torch.equal(whole[name][2:], alone[name]) for name in whole)
    losses = task.metrics(task.forward(Silent(), whole), whole)["loss"]
    assert isinstance(losses, Tensor)
    torch.testing.assert_close(losses, whole["told"].square().flatten(2).mean(2).mean(1))
    assert len(set(whole["told"].flatten(2).mean(2).flatten().tolist())) == 12


def test_latents_are_those_of_the_pipeline_and_kept(
    diffusion: Path, table: Path, cache: Path
) -> None:
    from diffusers import AutoencoderKL

    pictures = [Image.new("RGB", (SIDE, SIDE), colour) for colour in COLOURS.values()]
    made = latents_of(pictures, SIDE, autoencoder(str(diffusion), ""))
    vae = AutoencoderKL.from_pretrained(diffusion, subfolder="vae")
    pixels = (
        torch.tensor(list(COLOURS.values())).float()[:, :, None, None].expand(-1, -1, SIDE, SIDE)
        / 127.5
        - 1
    )
    with torch.no_grad():
        wanted = vae.encode(pixels.contiguous()).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(made, wanted)
    (file,) = cache.iterdir()
    before = file.stat().st_mtime_ns
    assert torch.equal(latents_of(pictures, SIDE, autoencoder(str(diffusion), "")), made)
    assert file.stat().st_mtime_ns == before
    file.write_bytes(b"torn")
    assert torch.equal(latents_of(pictures, SIDE, autoencoder(str(diffusion), "")), made)


def test_clients_tune_the_denoiser(diffusion: Path, table: Path) -> None:
    plan = read_plan(
        changes(
            diffusion, table, local={"batch_size": 4, "lr": 0.02, "epochs": 4, "optimizer": "adamw"}
        )
    )
    site = open_site(plan)
    assert list(site.data.clients) == ["ann", "bob"]
    assert all(
        ".lora_" in name and (".to_q." in name or ".to_v." in name) for name in site.params()
    )
    before = measure(site, site.params())
    assert before == measure(site, site.params())
    ((state, ledger),) = federate(plan, InProcess(site), start(plan, site.params()))
    assert ledger.failed == {}
    assert measure(site, state.params)["loss"] < before["loss"] - 0.005


@pytest.mark.slow
def test_engines_agree(diffusion: Path, table: Path) -> None:
    """Noise comes with the batch, and latents lie in memory as they do when a worker reads them."""
    plan = read_plan(changes(diffusion, table))
    site = open_site(plan)
    with closing(Processes(site, workers=1)) as processes:
        engines = (InProcess(site), processes, Cohort(site))
        ((one, _), (same, _), (near, ledger)) = (
            next(federate(plan, e, start(plan, site.params()))) for e in engines
        )
    assert ledger.failed == {}
    for name, x in one.params.items():
        assert torch.equal(x, same.params[name])
        torch.testing.assert_close(x, near.params[name], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def runs(
    diffusion: Path, table: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    made = {}
    for name, method in (("lora", {"name": "lora", "rank": 2, "alpha": 8.0}), ("full", "full")):
        plan = read_plan(changes(diffusion, table, name=name, method=method))
        site, made[name] = open_run_site(plan), root / name
        folder = create(plan, made[name])
        assert [record.round for record in execute(folder, site, open_engine(folder, site))] == [1]
    return made


def outputs(unet: Any) -> Tensor:
    x = rows()
    with torch.no_grad():
        told: Tensor = unet.eval()(x["latent"], torch.tensor([10, 500, 990]), x["caption"]).sample
    return told


def test_plain_diffusers_loads_what_comes_of_a_run(
    runs: Mapping[str, Path], diffusion: Path, tmp_path: Path
) -> None:
    from diffusers import UNet2DConditionModel

    from fedpeft.compute.trainable import write
    from fedpeft.runs.checkpoint import load_checkpoint
    from fedpeft.runs.folder import reopen

    wanted = {}
    for name, run in runs.items():
        folder, plan = reopen(run)
        saved, model = load_checkpoint(folder.checkpoint, plan), plan.model(())
        assert saved is not None
        write(model, saved.state.params)
        wanted[name] = outputs(model)
    base = UNet2DConditionModel.from_pretrained(diffusion, subfolder="unet")
    assert not torch.allclose(outputs(base), wanted["lora"], atol=1e-4)

    card = export_run(runs["lora"], tmp_path / "lora")[0]
    assert (
        card.name == "README.md"
        and "unet.load_lora_adapter(folder, prefix='unet', use_safetensors=True)".replace("'", '"')
        in card.read_text()
    )
    # Some loaders read no metadata, and take 1 for a scale that nothing tells.
    [file] = (tmp_path / "lora").glob("*.safetensors")
    bare = load_file(file)
    plain = UNet2DConditionModel.from_pretrained(diffusion, subfolder="unet")
    plain.load_lora_adapter(bare, prefix="unet")
    torch.testing.assert_close(outputs(plain), wanted["lora"], rtol=1e-5, atol=1e-6)
    base.load_lora_adapter(tmp_path / "lora", prefix="unet", use_safetensors=True)
    torch.testing.assert_close(outputs(base), wanted["lora"], rtol=1e-5, atol=1e-6)
    export_run(runs["lora"], tmp_path / "merged", merge=True)
    export_run(runs["full"], tmp_path / "full")
    for name, of in (("merged", "lora"), ("full", "full")):
        unet = UNet2DConditionModel.from_pretrained(tmp_path / name, subfolder="unet")
        torch.testing.assert_close(outputs(unet), wanted[of], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_draws_with_the_exported_lora(
    runs: Mapping[str, Path], diffusion: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    export_run(runs["lora"], tmp_path / "lora")
    pipeline = StableDiffusionPipeline.from_pretrained(diffusion)

    def drawn() -> Any:
        seeded = torch.Generator().manual_seed(0)
        return pipeline(
            "a", height=SIDE, width=SIDE, num_inference_steps=3, generator=seeded, output_type="pt"
        ).images

    before = drawn()
    pipeline.load_lora_weights(tmp_path / "lora")
    assert drawn().shape == (1, 3, SIDE, SIDE)
    assert not torch.equal(drawn(), before)


def test_pictures_stand_side_by_side(runs: Mapping[str, Path], tmp_path: Path, table: Path) -> None:
    def drawn(name: str, *more: str) -> Image.Image:
        words = [
            "sample",
            *map(str, runs.values()),
            "-o",
            str(tmp_path / name),
            "--steps",
            "2",
            *more,
        ]
        told = CliRunner().invoke(app, words)
        assert told.exit_code == 0, told.output
        with Image.open(tmp_path / name) as made:
            return made.copy()

    one, again = drawn("one.png", "--number", "3"), drawn("again.png", "--number", "3")
    assert one.tobytes() == again.tobytes()
    step = 100
    left = one.width - 4 * step  # held out, before, and the two runs
    assert left > 0 and one.height == 18 + 3 * step
    _, out = hold_out(torch.zeros(24), 0.2, 1)
    assert one.getpixel((left + 50, 18 + 50)) == list(COLOURS.values())[int(out[0]) % 4]
    columns = [
        one.crop((left + k * step, 18, left + (k + 1) * step, one.height)).tobytes()
        for k in range(4)
    ]
    assert len(set(columns)) == 4
    assert drawn("told.png", "--caption", "a", "--seed", "3").width == left + 3 * step


def test_what_does_not_fit_is_one_clear_line(
    diffusion: Path, table: Path, tmp_path: Path, real_data: Path
) -> None:
    def refused(**other: Any) -> str:
        with pytest.raises((PlanError, DataError)) as raised:
            open_site(read_plan(changes(diffusion, table, **other)))
        return str(raised.value)

    def of(**settings: Any) -> dict[str, Any]:
        return {"task": {"name": "text-to-image", "model": str(diffusion), **settings}}

    assert "has no unet that can be read" in refused(**of(model=str(table.parent)))
    assert "is no multiple of 2" in refused(**of(size=7))
    assert "takes 4 channels, the autoencoder" in refused(**of(vae=str(real_data / "taef2")))
    assert "has no vae that can be read" in refused(**of(vae=str(table.parent)))
    with pytest.raises(PlanError, match="measured_at at least 1"):
        read_plan(changes(diffusion, table, **of(measured_at=0)))
    for name, part, changed, words in (
        ("xl", "unet", {"addition_embed_type": "text_time"}, "must be told more than a caption"),
        (
            "flow",
            "scheduler",
            {"prediction_type": "flow_prediction"},
            "adds no noise by a schedule of betas",
        ),
    ):
        copy = tmp_path / name
        for one in diffusion.iterdir():
            (copy / one.name).parent.mkdir(exist_ok=True)
            (copy / one.name).symlink_to(one)
        (copy / part).unlink()
        (copy / part).mkdir()
        for file in (diffusion / part).iterdir():
            (copy / part / file.name).write_bytes(file.read_bytes())
        (file,) = (copy / part).glob("*config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))
        assert words in refused(**of(model=str(copy)))


def test_pictures_without_captions_and_torn_ones_are_refused(
    diffusion: Path, table: Path, tmp_path: Path
) -> None:
    task, picture = TextToImage(str(diffusion)), Image.new("RGB", (SIDE, SIDE))
    with pytest.raises(DataError, match="1 of 2 pictures have no caption"):
        task.prepare(Table({"image": [picture] * 2, "text": ["a", " "]}))
    with pytest.raises(DataError, match="learns from a column 'text'"):
        task.prepare(Table({"image": [picture]}))
    torn = tmp_path / "torn.jsonl"
    (tmp_path / "torn.png").write_bytes((table.parent / "0.png").read_bytes()[:40])
    torn.write_text(
        "".join(json.dumps({"image": "torn.png", "text": text}) + "\n" for text in "abcd")
    )
    with pytest.raises(DataError, match=r"torn\.png cannot be read"):
        open_site(
            read_plan(
                changes(
                    diffusion,
                    torn,
                    data={
                        "name": "table",
                        "path": str(torn),
                        "label": "none",
                        "test_fraction": 0.5,
                    },
                    partition={"name": "iid", "clients": 1},
                )
            )
        )
    with pytest.raises(RunError, match="there is nothing to draw"):
        from fedpeft.results.pictures import grid
        from fedpeft.tasks.drawing import Drawing

        plan = read_plan({"rounds": 1, "cohort": 1, "partition": {"name": "iid", "clients": 40}})
        site, folder = open_run_site(plan), create(plan, tmp_path / "digits")
        list(execute(folder, site, open_engine(folder, site)))
        grid([folder.path], Drawing())


def test_taef2_gives_pictures_back(real_data: Path) -> None:
    """27.6 dB on the first 64 emoji, as measured with the original's code; here on 8 of them."""
    from fedpeft.data.table import HubTable

    module = Taef2.load(real_data / "taef2")
    assert [
        sum(x.numel() for x in part.parameters()) for part in (module.encoder, module.decoder)
    ] == [
        1338528,
        1338499,
    ]
    pictures = (
        HubTable(str(real_data / "emoji"), text="name", label="none").load().train.columns["image"]
    )
    x = next(squares([pictures[k] for k in range(8)], 64)).float() / 255
    with torch.inference_mode():
        error = (module.decode(module.encode(x)) - x).square().flatten(1).mean(1)
    assert -10 * error.log10().mean() == pytest.approx(27.6, abs=1.5)
