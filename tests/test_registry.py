"""The phone book: every name in it answers, is what it says, and can be written down and read
back."""

import pickle
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass
from importlib import import_module
from typing import Any

import pytest
from parts import Points

from fedpeft.catalogue import CATALOGUE
from fedpeft.codecs.topk import TopK
from fedpeft.errors import PlanError
from fedpeft.local.descent import Descent
from fedpeft.plan.reading import read_plan
from fedpeft.registry import build, describe, find, names, settings_of

EVERY = [(kind, name) for kind in sorted(CATALOGUE) for name in sorted(names(kind))]
PARTS = [(kind, name) for kind, name in EVERY if kind != "engine"]
NEEDED: dict[tuple[str, str], dict[str, Any]] = {
    ("algorithm", "fedmfs"): {"groups": {"picture": ("vision.*",), "text": ("text.*",)}},
    ("algorithm", "transfer_components"): {"targets": ["here"]},
    ("data", "arrays"): {"path": "some.npz"},
    ("data", "images"): {"path": "some/folder"},
    ("data", "masks"): {"path": "some/folder"},
    ("data", "memory"): {"train": {"label": [0, 1]}},
    ("data", "series"): {"path": "some.csv"},
    ("data", "table"): {"path": "some/table"},
    ("data", "videos"): {"path": "some/folder"},
    ("local", "model_trainer"): {"trainer": "own_trainers:plain"},
    ("local", "trainer"): {"trainer": "own_trainers:make"},
    ("method", "early_exits"): {"exits": (2, 4)},
    ("partition", "column"): {"column": "writer"},
    ("partition", "redrawn"): {"subset": 100},
    ("partition", "lists"): {"clients": {"here": (0, 1), "there": (2,)}},
    ("routing", "annealed"): {"start": 4, "to": 2, "warm": 1, "until": 3},
    ("routing", "depths"): {"depths": (2, 4)},
    ("routing", "drawn"): {"pattern": "*.layers.{}.attention.*", "groups": 3},
    ("routing", "personal"): {"patterns": ["classifier.*"]},
    ("routing", "ranks"): {"ranks": [2, 4]},
    ("routing", "scopes"): {"scopes": {"text_model.*": ("txt-*",)}},
    ("routing", "subset"): {"trains": ["classifier.*"]},
    ("routing", "tiers"): {"budgets": [1.0, 0.25]},
    ("task", "factorization"): {"columns": ["film"], "sizes": [9]},
    ("task", "image-text-to-text"): {"model": "some/folder"},
    ("task", "module"): {"module": "networks:Linear", "arguments": {"features": 8, "classes": 3}},
    ("task", "regression"): {"features": ["age", "size"]},
    ("task", "semantic-segmentation"): {"model": "some/folder", "labels": ["ground", "road"]},
    ("task", "image-text"): {"model": "some/folder"},
    ("task", "seq2seq"): {"model": "some/folder"},
    ("task", "speech-to-text"): {"model": "some/folder"},
    ("task", "survival"): {"features": 3},
    ("task", "time-ffm"): {"model": "some/folder"},
    ("task", "token-classification"): {"labels": ["O", "B-PER"]},
    ("task", "text-to-image"): {"model": "some/folder"},
}
"""What a part cannot do without."""


def made(kind: str, name: str) -> Any:
    return build(kind, {"name": name, **NEEDED.get((kind, name), {})})


def same(a: Any, b: Any) -> bool:
    """Of one class, with equal fields: some parts hold data and so know no equality."""
    return type(a) is type(b) and vars(a) == vars(b)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_it_is_found_and_says_what_it_is(kind: str, name: str) -> None:
    first = (import_module(find(kind, name).__module__).__doc__ or "").partition("\n\n")[0].strip()
    assert first.endswith((".", ":")) or "arXiv:" in first


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_it_is_a_frozen_dataclass_that_can_be_sent_to_another_process(kind: str, name: str) -> None:
    part = made(kind, name)
    assert same(pickle.loads(pickle.dumps(part)), part)  # noqa: S301  # our own bytes, a line ago
    assert is_dataclass(part)
    for f in fields(part):
        with pytest.raises(FrozenInstanceError):
            setattr(part, f.name, None)


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_what_describes_it_builds_it_again(kind: str, name: str) -> None:
    part = made(kind, name)
    told = describe(kind, part)
    assert told["name"] == name and same(build(kind, told), part)


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_a_key_that_it_does_not_have_is_an_error(kind: str, name: str) -> None:
    with pytest.raises(PlanError, match="no key called 'no_such_key'"):
        build(kind, {"name": name, **NEEDED.get((kind, name), {}), "no_such_key": 1})


def test_no_class_inherits_from_another_of_ours() -> None:
    ours = [find(kind, name) for kind, name in EVERY]
    assert not [
        cls
        for cls in ours
        if any(base.__module__.startswith("fedpeft") for base in cls.__mro__[1:])
    ]


def test_an_unknown_name_has_a_nearest_one_and_all_known() -> None:
    with pytest.raises(
        PlanError, match=r"no aggregator called 'maen'\. Did you mean 'mean'\? Known: .*median"
    ):
        build("aggregator", "maen")


def test_an_unknown_key_has_a_nearest_one() -> None:
    with pytest.raises(
        PlanError, match=r"codec 'topk': no key called 'densty'\. Did you mean 'density'\?"
    ):
        build("codec", {"name": "topk", "densty": 0.1})


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            {"name": "topk", "density": "much"},
            r"codec\.density = 'much': input should be a valid number",
        ),
        ({"name": "topk", "density": [0.1]}, r"codec\.density = \[0\.1\]"),
        ({"name": "topk", "density": 2.0}, r"codec 'topk': density must be in \(0, 1\], got 2\.0"),
        ({"density": 0.1}, "codec needs a `name`; known: .*topk"),
        ({"name": 3}, "codec needs a `name`"),
    ],
)
def test_wrong_values_are_plan_errors(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        build("codec", spec)


def test_parts_within_parts() -> None:
    spec = {"name": "descent", "optimizer": {"name": "adamw", "beta1": 0.5}, "correction": "prox"}
    local = build("local", spec)
    assert isinstance(local, Descent) and settings_of(local)["optimizer"]["beta1"] == 0.5
    assert build("local", describe("local", local)) == local
    with pytest.raises(PlanError, match=r"local\.optimizer 'adamw': no key called 'momentum'"):
        build("local", {"name": "descent", "optimizer": {"name": "adamw", "momentum": 0.5}})


def test_a_new_name_that_keeps_the_keys_of_another_part_is_told_so() -> None:
    with pytest.raises(PlanError, match=r"'alpha', which belongs to dirichlet.*\{name=\"NAME\"\}'"):
        read_plan({"partition": {"name": "dirichlet", "alpha": 1.0}}, ["partition.name=iid"])


def test_a_part_of_ones_own() -> None:
    part = build("task", {"name": "parts:Points", "features": 5})
    assert part == Points(features=5)
    assert describe("task", part) == {"name": "parts:Points", "network": "linear", "features": 5}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:Part", "cannot be loaded from no_such_module:Part: No module named"),
        ("parts:NoSuchPart", "cannot be loaded from parts:NoSuchPart: .*has no attribute"),
        ("parts:die", "is no dataclass, so its settings cannot be told"),
    ],
)
def test_a_part_of_ones_own_that_cannot_be_had(name: str, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        build("task", {"name": name})


def test_a_part_that_is_built_passes_through() -> None:
    codec = TopK(0.5)
    assert build("codec", codec) is codec


@pytest.mark.parametrize("spec", [1, 0.5, True, None, [], ["topk"], b"topk", TopK, len])
def test_what_is_no_part_does_not_pass(spec: Any) -> None:
    with pytest.raises(
        PlanError, match=r"^up\.link = .*: must be a name, a table .*; known: .*dense.*topk"
    ) as caught:
        build("codec", spec, path="up.link")
    assert f"up.link = {spec!r}" in str(caught.value)


@pytest.mark.parametrize("codec", [Points(), "parts:Points", {"name": "parts:Points"}])
def test_a_part_of_another_kind_says_what_it_cannot_do(codec: Any) -> None:
    with pytest.raises(
        PlanError, match=r"stage\.codec: Points is no codec: it has no encode, decode$"
    ):
        build("stage", {"name": "error_feedback", "codec": codec})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(PlanError, match="'parts:Fatal' needs the key 'trigger'"):
        build("task", "parts:Fatal")


@dataclass(frozen=True)
class Nested:
    """A part with a tuple, for `settings_of`."""

    values: tuple[int, ...] = (1, 2)


def test_settings_are_plain() -> None:
    assert settings_of(Nested()) == {"values": [1, 2]}
