"""A Flower app that names what is installed and holds the plan: nothing of it needs to be downloaded to be run."""

import re
from pathlib import Path

import tomli_w

from fedpeft import __version__
from fedpeft.deploy.terms import check_plan
from fedpeft.errors import RunError
from fedpeft.plan import Plan

SERVER, CLIENT = "server_app.py", "client_app.py"


def write_app(plan: Plan, path: Path) -> None:
    """Write a pyproject.toml and two short files into the folder `path`.

    Raises:
      PlanError: the plan cannot be carried out on Flower, or not be written.
      RunError: something is there.
    """
    check_plan(plan)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} is there already: name a new or an empty folder")
    path.mkdir(parents=True, exist_ok=True)
    values = {
        "project": {
            "name": re.sub(r"[^a-z0-9]+", "-", plan.name.lower()).strip("-") or "run",
            "version": __version__,
            "description": f"The fedpeft plan {plan.name!r}",
            "license": "Apache-2.0",
            "dependencies": [],  # the installed package brings its own; Flower would install what is named here
        },
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "tool": {
            "hatch": {"build": {"targets": {"wheel": {"packages": ["."]}}}},
            "flwr": {
                "app": {
                    "publisher": "fedpeft",
                    "components": {"serverapp": "server_app:app", "clientapp": "client_app:app"},
                    "config": {"plan": plan.toml(), "run": ""},
                }
            },
        },
    }
    (path / "pyproject.toml").write_text(tomli_w.dumps(values, multiline_strings=True), encoding="utf-8")
    head = '"""The %s\'s part; all of it is in the installed package."""\n\nfrom %s import app\n\n__all__ = ["app"]\n'
    (path / SERVER).write_text(head % ("server", "fedpeft.deploy.server"), encoding="utf-8")
    (path / CLIENT).write_text(head % ("node", "fedpeft.engines.courier"), encoding="utf-8")
