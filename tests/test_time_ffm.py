"""Time-FFM: what its parts compute, what travels, and what stays with each client."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_forecasting import run_of, waves
from text_runs import check_stacked

from fedpeft import InProcess, PlanError, federate, open_site, read_plan, start
from fedpeft.core.seeds import seed_torch
from fedpeft.evaluation.own_held_out import own_held_out
from fedpeft.oneshot.fingerprints import transforms_digest
from fedpeft.storage.client_memory import Folder
from fedpeft.tasks.time_ffm import PromptAdaption, TimeFfm, count_patches

METHOD = {"name": "named", "trains": ["patches.*", "prompt.*"]}
SHAPE: dict[str, Any] = {"context": 16, "horizon": 4}
FEW: dict[str, Any] = {
    "patch_length": 4,
    "patch_stride": 4,
    "prototypes": 6,
    "prompts": 3,
    "heads": 2,
}


def save_lm(folder: Path, kind: str = "GPT2", **other: Any) -> Path:
    import transformers

    sizes: dict[str, dict[str, Any]] = {
        "GPT2": {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 20, "n_positions": 16,
                 "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
        "Bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "intermediate_size": 8, "vocab_size": 20},
        "ViT": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 8, "image_size": 8, "patch_size": 4},
        "T5": {"d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 8, "vocab_size": 20},
    }  # fmt: skip
    with seed_torch(2):
        model = getattr(transformers, f"{kind}Model")(
            getattr(transformers, f"{kind}Config")(**{**sizes[kind], **other})
        )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return waves(tmp_path_factory.mktemp("series") / "waves.csv")


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lm(tmp_path_factory.mktemp("lm"))


def plan_of(file: Path, lm: Path, task: dict[str, Any] | None = None, **other: Any) -> Any:
    changes = {
        "task": {"name": "time-ffm", "model": str(lm), **SHAPE, **FEW, **(task or {})},
        "method": METHOD,
        "weighting": "uniform",
        **other,
    }
    return run_of(file) | changes


def test_windows_are_cut_into_patches_that_see_every_step() -> None:
    cuts = ((96, 16, 16), (36, 16, 4), (16, 16, 4), (3, 16, 8))
    assert [count_patches(*cut) for cut in cuts] == [6, 6, 1, 1]
    assert count_patches(97, 16, 16) == 7


def test_the_last_value_goes_on_in_a_patch_that_is_longer_than_what_is_left(lm: Path) -> None:
    model: Any = TimeFfm(str(lm), 5, 2, **{**FEW, "patch_length": 3, "patch_stride": 3}).build(())
    assert model.cut(torch.arange(5.0)[None]).tolist() == [[[0, 1, 2], [3, 4, 4]]]


def test_a_window_is_standardised_by_itself_and_scaled_back(lm: Path) -> None:
    """(1, 2, 3, 4) has mean 2.5 and spread √(1.25 + 1e-5) = 1.118038. A head of bias 2 tells 2.5 +
    2 spreads."""
    model: Any = TimeFfm(str(lm), 4, 1, **FEW).build(())
    seen: list[torch.Tensor] = []
    model.patches.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.constant_(model.head.bias, 2.0)
    with torch.inference_mode():
        told = model(torch.tensor([[1.0, 2, 3, 4], [7, 7, 7, 7]]))
    wanted = torch.tensor([-1.341635, -0.447212, 0.447212, 1.341635])
    torch.testing.assert_close(seen[0][0, 0], wanted, atol=1e-6, rtol=0)
    wanted = torch.tensor([[2.5 + 2 * 1.118038], [7 + 2 * 1e-5**0.5]])
    torch.testing.assert_close(told, wanted, atol=1e-5, rtol=0)


def test_prompts_are_the_keys_that_fit_all_patches_best() -> None:
    """Against loops in NumPy over heads, prototypes and patches."""
    with seed_torch(4):
        prompt = PromptAdaption(words=7, width=6, prototypes=5, heads=2, chosen=3).double()
        patches, vocabulary = torch.randn(2, 4, 6).double(), torch.randn(7, 6).double()
    w = {name: x.detach().numpy() for name, x in prompt.named_parameters()}
    prototypes = w["words.weight"] @ vocabulary.numpy() + w["words.bias"][:, None]
    keys = prototypes @ w["key.weight"].T + w["key.bias"]
    wanted = np.zeros((2, 3, 6))
    for n in range(2):
        queries = patches[n].numpy() @ w["query.weight"].T + w["query.bias"]
        for head in range(2):
            own = slice(3 * head, 3 * head + 3)
            fits = np.zeros(5)
            for query in queries[:, own]:
                scores = np.exp([query @ key / np.sqrt(3) for key in keys[:, own]])
                fits += scores / scores.sum()
            wanted[n, :, own] = keys[np.argsort(-fits)[:3], own]
        wanted[n] = wanted[n] @ w["out.weight"].T + w["out.bias"]
    found = prompt(patches, vocabulary).detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("words", "width", "prototypes", "shared"),
    [(50257, 768, 100, 6_810_632), (512, 64, 32, 29_984)],
)
def test_what_is_shared_has_the_published_size(
    words: int, width: int, prototypes: int, shared: int
) -> None:
    """GPT-2 as published, and the smallest of the stories."""
    with torch.device("meta"):
        parts = (torch.nn.Linear(16, width), PromptAdaption(words, width, prototypes, 8, 12))
    assert sum(x.numel() for part in parts for x in part.parameters()) == shared


def test_heads_stay_and_the_front_end_travels(file: Path, lm: Path, tmp_path: Path) -> None:
    """The query has no gradient, and so does not travel either."""
    plan = read_plan(plan_of(file, lm, personal=["head.*"]))
    site, store = open_site(plan), Folder(tmp_path)
    before = {name: x.clone() for name, x in site.model.named_parameters() if "lm." in name}
    begin = start(plan, site.params())
    last = list(federate(plan, InProcess(site, store), begin))[-1][0]
    names = {f"prompt.{part}.{kind}" for part in ("words", "key", "out")
             for kind in ("weight", "bias")}  # fmt: skip
    assert set(last.params) == {"patches.weight", "patches.bias", *names}
    assert all(not torch.equal(x, begin.params[name]) for name, x in last.params.items())
    heads = [store.load(c, last.accepted[c])["personal/head.weight"] for c in "abc"]
    assert not torch.equal(heads[0], heads[1])
    assert all(torch.equal(dict(site.model.named_parameters())[n], x) for n, x in before.items())
    found = [own_held_out(site, state, store) for state in (begin, last)]
    assert all(one is not None for one in found)
    first, then = (one["metrics"]["loss"]["mean"] for one in found if one)
    assert then < first


def test_equal_clients_are_as_one(file: Path, lm: Path) -> None:
    """Two clients with the same windows, each one batch, end where one does."""
    text = file.read_text().splitlines()
    columns = [line.split(",") for line in text]
    results = []
    for names in (("a",), ("a", "b")):
        lines = [",".join(["time", *names])] + [
            ",".join([row[0], *[row[1]] * len(names)]) for row in columns[1:]
        ]
        same = file.with_name(f"same-{len(names)}.csv")
        same.write_text("\n".join(lines) + "\n")
        plan = read_plan(plan_of(same, lm, cohort=len(names), rounds=1,
                                 local={"lr": 0.01, "batch_size": 99}))  # fmt: skip
        site = open_site(plan)
        results.append(list(federate(plan, InProcess(site), start(plan, site.params())))[-1][0])
    for name, x in results[0].params.items():
        torch.testing.assert_close(results[1].params[name], x, atol=1e-6, rtol=1e-5)


def test_a_stack_of_clients_ends_where_one_after_another_does(file: Path, lm: Path) -> None:
    check_stacked(plan_of(file, lm))


def test_random_language_models_are_equal_at_all_sites(lm: Path, tmp_path: Path) -> None:
    """They need a configuration alone, and are other ones than the saved."""
    (tmp_path / "config.json").write_bytes((lm / "config.json").read_bytes())
    task = TimeFfm(str(tmp_path), **SHAPE, **FEW, random=True)
    models = []
    for _ in range(2):
        with seed_torch(3):
            models.append(task.build(()).state_dict())
    saved = TimeFfm(str(lm), **SHAPE, **FEW).build(()).state_dict()
    name = "lm.h.0.attn.c_attn.weight"
    assert torch.equal(models[0][name], models[1][name])
    assert not torch.equal(models[0][name], saved[name])
    with pytest.raises(PlanError, match="cannot be loaded"):
        TimeFfm(str(tmp_path), **SHAPE, **FEW).build(())


@pytest.mark.parametrize("method", ["head", "full", "lora"])
def test_other_methods_train_it_too(file: Path, tmp_path: Path, method: str) -> None:
    """An encoder that reads both ways will do as well."""
    plan = read_plan(plan_of(file, save_lm(tmp_path, "Bert"), method=method))
    site = open_site(plan)
    begin = start(plan, site.params())
    last = list(federate(plan, InProcess(site), begin))[-1][0]
    assert any(not torch.equal(x, begin.params[name]) for name, x in last.params.items())


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("ViT", {}, r"\(vit\) is no language model of one stack"),
        ("T5", {}, r"\(t5\) is no language model of one stack"),
        ("GPT2", {"prompts": 14, "prototypes": 20}, "are 18 tokens, and model .* reads 16"),
        ("GPT2", {"heads": 3}, "heads = 3 does not divide the 8 numbers"),
    ],
)
def test_models_that_cannot_be_prompted_are_refused(
    tmp_path: Path, kind: str, changes: dict[str, Any], words: str
) -> None:
    task = TimeFfm(str(save_lm(tmp_path, kind)), **SHAPE, **{**FEW, **changes})
    with pytest.raises(PlanError, match=words):
        task.build(())


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="prompts are 1 to prototypes = 2, got 3"):
        TimeFfm("lm", prototypes=2, prompts=3)
    with pytest.raises(ValueError, match="heads are at least 1, got 96, 24, 0"):
        TimeFfm("lm", patch_length=0)


def test_sites_compare_what_makes_prompts(lm: Path) -> None:
    tasks = [TimeFfm(str(lm), prompts=prompts) for prompts in (4, 5)]
    assert transforms_digest(tasks[0]) != transforms_digest(tasks[1])
