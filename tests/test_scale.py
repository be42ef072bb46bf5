"""The benchmark of what grows with the number of clients still runs."""

import pytest

from benchmarks import scale


@pytest.mark.slow
def test_scale_measures_a_server_and_a_round() -> None:
    found = scale.server(updates=3, repeats=1)
    assert found["from_cache_seconds"] > 0 and found["from_disk_seconds"] > 0
    assert found["mb"] == round(3 * 371_812 * 4 / 1e6)
    few = scale.memory(clients=3, remembering=2)
    assert few["an_update_mb"] == pytest.approx(371_812 * 4 / 1e6, abs=0.01)
    assert few["on_disk_a_client_mb"] > 0
