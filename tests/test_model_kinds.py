"""Families of models under the tasks that open them from a folder, as docs/models.md tells of
them."""

from pathlib import Path

import pytest

from tools.models.opened import KINDS, open_small
from tools.models.trying import try_method

EVERY = [(kind, family) for kind, made in KINDS.items() for family in made.families]


@pytest.mark.parametrize(
    ("kind", "family", "method", "match"),
    [
        ("image-text", "siglip2", "lora", "takes patches of pictures of any shape"),
        ("speech-to-text", "whisper", "prefix", "reads no tokens, and a prefix stands before"),
        ("speech-to-text", "moonshine", "lora", "takes models that hear clips filled up"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    tmp_path: Path, kind: str, family: str, method: str, match: str
) -> None:
    found = try_method(open_small(kind, family, tmp_path), method)
    assert found.sign == "no" and match in found.reason


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "family"), EVERY)
def test_no_family_ends_in_a_traceback(tmp_path: Path, kind: str, family: str) -> None:
    task = open_small(kind, family, tmp_path)
    if isinstance(task, str):
        pytest.skip(task)
    assert [m for m in ("full", "lora") if try_method(task, m).sign == "raises"] == []
