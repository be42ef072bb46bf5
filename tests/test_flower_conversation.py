"""An algorithm from another package on real nodes, ended by kill -9 after each of its messages."""

import shutil
from pathlib import Path

import pytest
from federations import submit, three
from test_conversation import PLUGIN  # the other package is installed
from test_conversation import plugin as plugin
from test_flower_faults import as_simulated

pytestmark = pytest.mark.skipif(
    shutil.which("flower-superlink") is None and not PLUGIN.exists(), reason="needs Flower"
)
PLAN = """
name = "drift"
task = "parts:Points"
data = "parts:Blobs"
method = "full"
rounds = 3
cohort = 3
server = "momentum"
server_steps = [{{ name = "shrink", rate = 0.25 }}]
algorithms = [{{ name = "drift", folder = "{}" }}]
nodes.deadline = 200
partition = {{ name = "dirichlet", clients = 3, alpha = 1.0 }}
local = {{ batch_size = 8, lr = 0.1 }}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_another_packages_algorithm_runs_on_nodes_and_survives_a_kill_after_each_message(
    tmp_path: Path,
) -> None:
    (tmp_path / "die-fit").touch()
    with three(tmp_path, PLAN.format(tmp_path)) as here:
        assert submit(here).wait(400) != 0, "the server's process was killed in the first round"
        assert not (tmp_path / "die-fit").exists()
        (tmp_path / "die-drift").touch()
        killed = here.fedpeft("killed", "run", "--resume", tmp_path / "run")
        assert killed.wait(400) != 0, "and again, one message later"
        assert not (tmp_path / "die-drift").exists()
        again = here.fedpeft("again", "run", "--resume", tmp_path / "run")
        assert again.wait(400) == 0, here.log("again")
        assert as_simulated(here)
