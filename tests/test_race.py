"""The benchmarks that compare and scale: that they measure the same work, and run."""

import json
import subprocess
import sys
from pathlib import Path
from signal import SIGTERM, getsignal, signal
from typing import Any

import psutil
import pytest
import torch

from benchmarks import gpu, scale
from benchmarks.machine import machine, measure_products, say_noise
from benchmarks.race import check_quiet, race
from benchmarks.race import main as race_main
from benchmarks.racing import telling
from benchmarks.racing.running import resident
from benchmarks.racing.works import SMALL


@pytest.mark.slow
def test_racers_end_at_the_same_parameters() -> None:
    found = race("small", SMALL, ("loop", "fedpeft", "trainer"), repeats=2)["racers"]
    assert [row["rounds"] for row in found.values()] == [2] * 5
    assert [name for name, row in found.items() if "chose" in row] == ["fedpeft auto"]
    assert found["fedpeft auto"]["chose"].startswith(("cohort: ", "inprocess: "))
    assert all(row["difference"] < 1e-4 for row in found.values())


def test_a_table_has_a_row_for_each_racer_and_says_who_is_missing() -> None:
    row: dict[str, Any] = {
        "seconds": 2.0,
        "least": 1.5,
        "most": 3.0,
        "of_loop": 0.5,
        "first": 4.0,
        "memory_mb": 300,
        "difference": 3e-7,
    }
    found = {
        "machine": {"cpu": "X", "cores": 2},
        "W1": {"what": "a work", "racers": {"pfl": row}, "out": {"flower": "no"}},
    }
    assert "| pfl | 2 | 1.5 to 3 | 0.50 | 4.0 s | 300 | 3e-07 |" in telling.table(found)
    assert "Without flower: no." in telling.table(found) and "chose" not in telling.table(found)
    row["chose"] = "cohort: it is faster"
    assert "pfl chose cohort: it is faster." in telling.table(found)


def test_the_list_says_what_each_work_is(capsys: pytest.CaptureFixture[str]) -> None:
    race_main(["--list"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "W1",
        "W2",
        "W3",
        "W4",
        "W5",
        "W6",
    ]


FORKS = """
import os, sys, time
held = bytearray(os.urandom(1 << 20) * 64)
os.fork()
print(flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PSS is Linux's")
def test_what_processes_share_counts_once() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", FORKS], stdout=subprocess.PIPE) as process:
        assert process.stdout
        both = [process.stdout.readline() for _ in range(2)]
        child = psutil.Process(process.pid).children()
        found = resident(process.pid)
        for one in [*child, process]:
            one.kill()
    assert len(both) == len(child) + 1 == 2
    assert 60e6 < found < 110e6  # resident in each are 64 MiB of it


QUIET = {"load": 0.0, "spread": 0.0}


def test_a_record_says_where_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.machine.SIDE", 64)
    told, products = machine(1), measure_products(1)
    assert told["cpu"] and told["cores"] and isinstance(told["instructions"], list)
    assert products["plain"]["1 threads"] >= 0
    results = {"machine": told, "products": products, "quiet": {"before": QUIET}}
    text = telling.table(results)
    proportional = telling.table({**results, "megabytes": "proportional"})
    assert "MB: " not in text and "MB: proportional" in proportional
    assert "Products, plain: " in text and "Quiet, before: load of a core 0" in text


def test_a_record_stays_where_the_machine_is_not_quiet(tmp_path: Path) -> None:
    loud, uneven = {**QUIET, "load": 0.9}, {**QUIET, "spread": 0.5}
    assert not say_noise(QUIET) and "load each core" in say_noise(loud)
    check_quiet(tmp_path, False, loud)  # nothing is there to be written over
    (tmp_path / "race.json").touch()
    check_quiet(tmp_path, False, QUIET)
    check_quiet(tmp_path, True, loud)
    for noise in (loud, uneven):
        with pytest.raises(SystemExit, match=r"stays as it is: .*add --anyway"):
            check_quiet(tmp_path, False, noise)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which this would measure")
def test_json_is_all_that_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    before = getsignal(SIGTERM)
    race_main(["--json", "--only", "W5"])
    signal(SIGTERM, before)
    seen = capsys.readouterr()
    assert json.loads(seen.out)["W5"]["skipped"] and "W5: ViT-B/16" in seen.err


def test_a_part_measured_anew_leaves_the_other(tmp_path: Path) -> None:
    file = tmp_path / "results" / "scale.json"
    scale.keep({"machine": {"cores": 2}, "memory": {"seconds": 1}, "server": {"seconds": 2}}, file)
    scale.keep({"machine": {"cores": 2}, "server": {"seconds": 3}}, file)
    kept = json.loads(file.read_text())
    assert kept == {"machine": {"cores": 2}, "memory": {"seconds": 1}, "server": {"seconds": 3}}


@pytest.mark.parametrize("model", [pytest.param("vit-b", marks=pytest.mark.slow), "llama"])
def test_the_gpu_benchmark_runs_in_small_on_a_processor(model: str) -> None:
    found = gpu.race([model], clients=[2], batches=[2], device="cpu", tiny=True, repeats=1)
    assert found[f"{model}, 2 clients, batch 2"]["cohort_steps_per_second"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_benchmark_says_so() -> None:
    assert gpu.race()["skipped"] == "there is no CUDA device here"


@pytest.mark.slow
def test_the_scale_benchmarks_run_in_small() -> None:
    server, memory = scale.server(20, 1), scale.memory(20, 4)
    assert server["mb"] == pytest.approx(20 * 371_812 * 4 / 1e6, abs=1)
    assert memory["an_update_mb"] == pytest.approx(371_812 * 4 / 1e6, abs=0.01)
    # the residual in float32 and the reply in float16
    assert memory["on_disk_a_client_mb"] == pytest.approx(371_812 * 6 / 1e6, abs=0.02)
