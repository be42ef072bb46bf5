"""The files for containers, which nobody runs here: what a parser makes of them."""

from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[1] / "examples" / "deploy"
INSTRUCTIONS = {"FROM", "ENV", "RUN", "COPY", "USER", "WORKDIR"}


def test_the_services_build_from_the_image_and_share_what_is_declared() -> None:
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"superlink", "worker0", "supernode0"}
    for service in services.values():
        root = (FOLDER / service["build"]["context"]).resolve()
        assert (root / service["build"]["dockerfile"]).resolve() == (
            FOLDER / "Dockerfile"
        ).resolve()
        named = {volume.split(":")[0] for volume in service["volumes"]} - {"./keys"}
        assert named <= set(compose["volumes"])
        assert set(service.get("depends_on", ())) <= set(services)
    assert "--enable-supernode-auth" in services["superlink"]["command"]
    assert "--insecure" not in str(services)


def test_the_image_is_made_of_known_instructions() -> None:
    text = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert {line.split()[0] for line in lines} <= INSTRUCTIONS
    assert lines[0].startswith("FROM python:3.11")
    assert any(line.startswith("USER ") and "root" not in line for line in lines)
