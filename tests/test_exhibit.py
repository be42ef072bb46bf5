"""What a text-to-image run keeps of its drawing, and the score that a CLIP gives it."""

import json
from base64 import b64decode
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from captioned import SIDE, changes, save_diffusion, save_table
from PIL import Image
from running import fedpeft
from tiny_clip import save_clip
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fedpeft import PlanError
from fedpeft.results.exhibit import CAPTIONS, MOST, _webp, exhibit_at_end
from fedpeft.results.pictures import grid
from fedpeft.runs.folder import reopen
from fedpeft.tasks.clip import TOGETHER, Clip, clip
from fedpeft.tasks.drawing import Drawing


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    (root / "squares").mkdir()
    (root / "diffusion").mkdir()
    plan = changes(save_diffusion(root / "diffusion"), save_table(root / "squares"), name="squares")
    (root / "plan.toml").write_text(tomli_w.dumps(plan))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDPEFT_CACHE", str(root / "cache"))
        done = fedpeft("run", root / "plan.toml", "--out", root / "one", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    return root / "one"


def kept(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "pictures.json").read_text())
    return values


def opened(text: str) -> Tensor:
    import numpy as np

    with Image.open(BytesIO(b64decode(text))) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def cosines(name: Path, pictures: Tensor, letters: list[str]) -> Tensor:
    """By hand: pixels to mean and spread as CLIP has them, letters to their numbers between start
    and end."""
    from transformers import CLIPModel

    model: Any = CLIPModel.from_pretrained(name)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    ids = torch.tensor([[0, "abcd".index(one) + 2, 1] for one in letters])
    with torch.no_grad():
        seen = model.visual_projection(
            model.vision_model((pictures / 255 - mean) / std).pooler_output
        )
        read = model.text_projection(model.text_model(ids).pooler_output)
    return cosine_similarity(seen, read)


def test_the_score_is_the_cosine_and_never_below_zero(tiny: Path) -> None:
    """A model that sees the opposite has the cosines with the other sign: of each pair one score is
    zero."""
    count = TOGETHER + 3
    pictures = torch.randint(
        256, (count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)
    ).to(torch.uint8)
    letters = ["abcd"[k % 4] for k in range(count)]
    wanted, judge = 2.5 * cosines(tiny, pictures, letters), clip(str(tiny))
    scores = judge(pictures, letters)
    torch.testing.assert_close(scores, wanted.clamp(min=0), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        judge.model.visual_projection.weight.neg_()
    opposite = Clip("opposite", judge.model, judge.processor)(pictures, letters)
    torch.testing.assert_close(scores - opposite, wanted, rtol=1e-4, atol=1e-5)
    assert ((scores > 0) != (opposite > 0)).all()


def test_what_is_no_clip_is_one_clear_line(tmp_path: Path, tiny: Path) -> None:
    """A folder without weights, and one without what makes inputs of pictures and captions."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
        with pytest.raises(PlanError, match="is no CLIP that can be read: a folder"):
            clip(str(tmp_path))


def test_a_run_ends_well_where_nothing_can_be_drawn(run: Path) -> None:
    before, table = kept(run), run.parent / "squares" / "table.jsonl"
    table.rename(run.parent / "aside")
    said = exhibit_at_end(*reopen(run))
    (run.parent / "aside").rename(table)
    assert said.startswith("no pictures were drawn for the report: ")
    assert kept(run) == before


def test_a_run_keeps_what_its_model_draws(run: Path) -> None:
    """The pictures are those of `fedpeft sample`, to the pixel: so small they lose nothing."""
    values = kept(run)
    assert values["round"] == 1 and values["clip"] is None
    drawn = grid([run], Drawing(values["steps"], values["guidance"], values["seed"]), CAPTIONS)
    assert [one["caption"] for one in values["pictures"]] == list(drawn.captions)
    for key, column in zip(("truth", "before", "after"), drawn.columns.values(), strict=True):
        assert all(
            torch.equal(opened(one[key]), x)
            for one, x in zip(values["pictures"], column, strict=True)
        )
    assert any(one["before"] != one["after"] for one in values["pictures"])


def test_large_pictures_are_made_smaller() -> None:
    large = torch.randint(
        256, (3, 2 * MOST, 2 * MOST), generator=torch.Generator().manual_seed(0)
    ).to(torch.uint8)
    text = _webp(large)
    assert opened(text).shape == (3, MOST, MOST) and len(text) < 2**19


def test_evaluate_draws_more_and_scores_it(run: Path, tiny: Path) -> None:
    before = kept(run)
    done = fedpeft("evaluate", run, "--sample", 4, "--clip", tiny, "--json")
    assert done.exit_code == 0, done.stderr
    told: Mapping[str, Any] = json.loads(done.stdout)
    values = kept(run)
    assert told["clip"] == values["clip"] and len(told["captions"]) == 4
    assert values["clip"]["model"] == str(tiny)
    for key in ("truth", "before", "after"):
        pictures = torch.stack([opened(one[key]) for one in values["pictures"]])
        letters = [one["caption"] for one in values["pictures"]]
        wanted = 2.5 * cosines(tiny, pictures, letters).clamp(min=0)
        torch.testing.assert_close(torch.tensor(values["clip"][key]), wanted, rtol=1e-4, atol=1e-5)
    (run / "pictures.json").unlink()
    again = fedpeft("evaluate", run, "--sample", CAPTIONS)
    assert (
        again.exit_code == 0
        and f"pictures of {len(before['pictures'])} captions are kept" in again.stdout
    )
    assert kept(run) == before  # an old run gets the pictures that it would have had
    refused = fedpeft("evaluate", run, "--clip", tiny)
    assert refused.exit_code == 2 and "--clip scores what --sample N draws" in refused.stderr
