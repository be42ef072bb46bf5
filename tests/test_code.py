"""A plan that came from somebody else runs no code, unless its reader names the module."""

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from running import strict

import fedpeft
from fedpeft import PlanError, read_plan
from fedpeft.registry import OWN, REGISTERED, Code, build
from fedpeft.runs.folder import create, reopen
from fedpeft.tasks.module import ModuleTask
from fedpeft.tasks.pretrained import language_model
from fedpeft.tasks.text_classification import tokenizer

SHELL = 'task = {name = "module", module = "subprocess:getoutput", arguments = {cmd = "touch %s"}}'
EVIL = """\
from pathlib import Path
Path("ran").touch()
class Part: ...
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder to which a program came by post."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "evil.py").write_text(EVIL)
    yield tmp_path
    for name in ("study.evil", "study", "evil"):
        sys.modules.pop(name, None)


def foreign(here: Path, line: str) -> Path:
    """A folder that looks like an invitation and like a run, and has this plan."""
    for name in ("invitation.json", "rounds.jsonl"):
        (here / "study" / name).write_text('{"format": "fedpeft-invitation-1"}')
    (here / "study" / "plan.toml").write_text(f'classes = ["a", "b"]\nrounds = 1\n{line}\n')
    return here / "study"


COMMANDS = {
    "contribute": ["contribute", "study", "--client", "0", "-o", "out.safetensors"],
    "merge": ["merge", "study", "x.safetensors", "-o", "merged"],
    "invite": ["invite", "study/plan.toml", "-o", "new"],
    "node": ["node", "study/plan.toml", "--client", "0"],
    "doctor": ["doctor", "study/plan.toml"],
    "app": ["app", "study/plan.toml", "-o", "new"],
    "evaluate": ["evaluate", "study"],
    "export": ["export", "study", "new"],
    "sample": ["sample", "study", "-o", "new.png"],
    "audit": ["audit", "study"],
    "audit a plan": ["audit", "study/plan.toml", "--canaries", "20"],
    "diagnose": ["diagnose", "study"],
    "diagnose a plan": ["diagnose", "study/plan.toml"],
}
PLANS = {
    "a part": 'method = "study.evil:Part"',
    "a part within a part": 'local = {name = "descent", optimizer = "study.evil:Part"}',
    "a stage": 'stages = ["study.evil:Part"]',
    "a phase": '[[phase]]\nset = ["aggregator=study.evil:Part"]',
    "a module": SHELL % "ran",
    "a trainer": 'local = {name = "trainer", trainer = "study.evil:Part"}',
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_by_post_runs_nothing(command: str, plan: str, here: Path) -> None:
    foreign(here, PLANS[plan])
    said = strict(*COMMANDS[command])
    assert said.exit_code in (1, 2) and "registered parts only" in said.output, said.output
    name = "subprocess" if plan == "a module" else "study.evil"
    assert f"--allow-code {name}" in said.output
    assert not (here / "ran").exists()


def test_a_module_that_is_allowed_is_run_and_no_other(here: Path) -> None:
    foreign(here, PLANS["a part"])
    assert "registered parts only" in strict("evaluate", "study", "--allow-code", "study").output
    assert "registered parts only" in strict("evaluate", "study", "--allow-code", "evil").output
    assert not (here / "ran").exists()
    said = strict("evaluate", "study", "--allow-code", "other", "--allow-code", "study.evil")
    assert "is no dataclass" in said.output and (here / "ran").exists()


@pytest.mark.parametrize("command", ["run", "show", "partition"])
def test_a_plan_of_ones_own_may_run_code(command: str, here: Path) -> None:
    foreign(here, PLANS["a part"])
    assert "is no dataclass" in strict(command, "study/plan.toml").output
    assert (here / "ran").exists()


def test_no_file_here_stands_for_a_module_that_is_installed(here: Path) -> None:
    (here / "colorsys.py").write_text('from pathlib import Path\nPath("ran").touch()\n')
    with pytest.raises(PlanError, match="has no attribute 'Part'"):
        read_plan('method = "colorsys:Part"')
    assert not (here / "ran").exists() and sys.path[-1] == str(here)


def test_python_says_what_may_be_named(tmp_path: Path) -> None:
    assert build("task", "parts:Points") == build("task", "parts:Points", code=Code.of(["parts"]))
    with pytest.raises(PlanError, match=r"^task = 'parts:Points' runs code, the module 'parts'"):
        build("task", "parts:Points", code=REGISTERED)
    with pytest.raises(PlanError, match=r"^plan\.task\.module = 'networks:Linear' runs code"):
        read_plan('task = {name = "module", module = "networks:Linear"}', code=REGISTERED)
    assert read_plan({"task": ModuleTask("networks:Linear")}, code=REGISTERED).task is not None
    folder = create(read_plan('task = "parts:Points"'), tmp_path / "run")
    with pytest.raises(PlanError, match=r"^plan\.task = 'parts:Points' runs code"):
        reopen(folder.path)
    assert reopen(folder.path, OWN)[1] == reopen(folder.path, Code.of(["parts"]))[1]


OF_A_MODEL = """\
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({ran!r}).touch()
class Config(LlamaConfig):
    model_type = "own"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast): ...
"""


def with_code(source: Path, folder: Path, file: str, change: Mapping[str, Any]) -> Path:
    """A copy of a model's folder that names a Python file of its own in one of its files."""
    copytree(source, folder)
    (folder / "own.py").write_text(OF_A_MODEL.format(ran=str(folder / "ran")))
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**values, **change}))
    return folder


@pytest.mark.parametrize("pretrained", [True, False])
def test_python_files_of_a_model_are_not_run(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretrained: bool
) -> None:
    """Not with somebody who answers yes to every question either."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    change = {"model_type": "own", "auto_map": code}
    folder = with_code(llama, tmp_path / "model", "config.json", change)
    with pytest.raises(PlanError, match="custom code"):
        language_model(str(folder), pretrained)
    assert not (folder / "ran").exists()


def test_python_files_of_a_tokenizer_are_not_run(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    change = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}}
    folder = with_code(llama, tmp_path / "model", "tokenizer_config.json", change)
    with suppress(PlanError):
        tokenizer(str(folder))
    assert not (folder / "ran").exists()


def test_no_plan_can_turn_it_on() -> None:
    named = ("image-classification", "text-classification", "causal-lm", "text-to-image")
    for task in (*named, "image-text-to-text"):
        with pytest.raises(PlanError, match="no key called 'trust_remote_code'"):
            read_plan({"task": {"name": task, "trust_remote_code": True}})


def test_all_that_is_read_from_a_model_s_folder_says_so() -> None:
    """But for two classes of `diffusers` that know no code of a folder."""
    calls = [
        (path.name, ast.unparse(node))
        for path in Path(fedpeft.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained")
    ]
    said = ("NO_CODE", "trust_remote_code=False", "unet")
    asking = [call for _, call in calls if not any(word in call for word in said)]
    assert len(calls) > 8 and not asking
