"""A Flower app that names what is installed and holds the plan: nothing of it needs to be
downloaded to be run."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fedpeft import __version__
from fedpeft.deploy.terms import check_node_plan
from fedpeft.errors import RunError
from fedpeft.plan.plan import Plan

COURIER = "fedpeft.engines.flower.courier"


def write_app(plan: Plan, path: Path) -> None:
    """Write a plan's Flower app, a pyproject.toml and two short files, into the folder `path`.

    Raises:
      PlanError: the plan cannot be carried out on Flower, or not be written.
      RunError: something is there.
    """
    check_node_plan(plan)
    write_bundle(
        path,
        plan.name,
        f"The fedpeft plan {plan.name!r}",
        "fedpeft.deploy.server",
        {"plan": plan.toml(), "run": ""},
    )


def write_bundle(
    path: Path, name: str, what: str, server: str, settings: Mapping[str, Any]
) -> None:
    """Write the app whose server's part is `app` in the module `server`, with these settings for
    it.

    Raises:
      RunError: something is there.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} is there already: name a new or an empty folder")
    path.mkdir(parents=True, exist_ok=True)
    project = {
        "name": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run",
        "version": __version__,
        "description": what,
        "license": "Apache-2.0",
        # What is installed brings its own; Flower would install what is named here.
        "dependencies": [],
    }
    components = {"serverapp": "server_app:app", "clientapp": "client_app:app"}
    app = {"publisher": "fedpeft", "components": components, "config": dict(settings)}
    tool = {"hatch": {"build": {"targets": {"wheel": {"packages": ["."]}}}}, "flwr": {"app": app}}
    build = {"requires": ["hatchling"], "build-backend": "hatchling.build"}
    values = {"project": project, "build-system": build, "tool": tool}
    (path / "pyproject.toml").write_text(
        tomli_w.dumps(values, multiline_strings=True), encoding="utf-8"
    )
    for file, whose, module in (
        ("server_app.py", "server", server),
        ("client_app.py", "node", COURIER),
    ):
        (path / file).write_text(
            f'"""The {whose}\'s part; all of it is installed."""\n\nfrom {module} import '
            'app\n\n__all__ = ["app"]\n',
            encoding="utf-8",
        )
