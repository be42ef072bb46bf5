"""The tutorials' commands: those of all pages exist, and those of a tutorial run as printed."""

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from fedpeft.cli.app import app

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
    *sorted(TUTORIALS.glob("*.md")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ENDS = re.compile(r" (?:&&|\|\||[|;&]|#|>>?|2>) .*| [&;]$|;.*")
"""What ends a command within a line."""


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of fedpeft's in a page's shell blocks."""
    for kind, body in BLOCK.findall(text):
        if kind == "sh":
            for line in body.replace("\\\n", " ").splitlines():
                for piece in re.split(r"(?:^|&& |; ?|\$\()(?=fedpeft )", line.strip()):
                    if piece.startswith("fedpeft "):
                        yield shlex.split(ENDS.sub("", piece), comments=True)[1:]


def fault(group: click.Command, words: list[str]) -> str:
    """What a command line has that the program does not know; "" for nothing."""
    assert isinstance(group, click.Group)
    name = next((word for word in words if not word.startswith("-")), "")
    command = group.commands.get(name)
    known = {option for one in (group, command) if one for p in one.params for option in p.opts}
    if name and command is None:
        return f"no command {name}"
    own = words[: words.index("--")] if "--" in words else words
    given = [word.partition("=")[0] for word in own if re.match(r"--?[a-z]", word)]
    return ", ".join(word for word in given if word not in known | {"--help", "-h"})


def test_the_commands_of_all_pages_are_there() -> None:
    found = [(page.name, words) for page in PAGES for words in commands(page.read_text("utf-8"))]
    assert len(found) > 120
    group = typer.main.get_command(app)
    wrong = [(page, words, why) for page, words in found if (why := fault(group, words))]
    assert wrong == []
    assert fault(group, ["run", "plan.toml", "--ot", "x"]) == "--ot" and fault(group, ["runn"])


def script(page: str, port: int) -> str:
    """A tutorial's blocks as one script: files are written, and commands run. Its reader has an
    environment already, and agrees to what is asked."""
    steps = ["set -e"]
    for kind, body in BLOCK.findall((TUTORIALS / page).read_text(encoding="utf-8")):
        if kind == "toml":
            [file] = re.findall(r"\A# (\S+)\n", body)
            steps.append(f"cat > {file} <<'END'\n{body}END")
        elif kind == "sh":
            steps.append(body.replace(". .venv/bin/activate\n", "").replace("9443", str(port)))
    agreed = r"\1 --yes"
    return re.sub(
        r"(fedpeft contribute (?:.*\\\n)*.*?)(?: --yes)?$", agreed, "\n".join(steps), flags=re.M
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("page", "seen"),
    [
        ("one-file.md", ["3 contributions merged", "2 contributions merged"]),
        ("comparing-methods.md", ["9 cells, 9 of them finished before", "report.html"]),
        ("language-model.md", ["round 6/6", "adapter_model.safetensors"]),
        ("nodes.md", ["round 4/4", "hospital-b: no worker runs at its node"]),
    ],
)
def test_a_tutorial_runs_as_printed(page: str, seen: list[str], tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **{name: x for name, x in os.environ.items() if name != "FEDPEFT_DATA"},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    ended = subprocess.run(
        ["bash", "-c", script(page, port)],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    assert [words for words in seen if words not in ended.stdout] == []
