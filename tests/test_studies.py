"""Studies: what they expand to, what they refuse, and their tables."""

from pathlib import Path

import pytest
from crashes import write
from hypothesis import given
from hypothesis import strategies as st
from running import fedpeft

from fedpeft import PlanError, read_plan
from fedpeft.cli.sweep import _left
from fedpeft.runs.folder import append_round
from fedpeft.studies.cell_store import CellStore
from fedpeft.studies.estimate import estimate_study, seconds_of
from fedpeft.studies.study import Cell, read_study, select_cells
from fedpeft.studies.sweep import CellOutcome
from fedpeft.studies.table import interval, markdown, rows_of

BASE = """
[base]
task = "parts:Points"
data = "parts:Blobs"
method = "full"
rounds = 2
cohort = 2
partition = {name = "dirichlet", clients = 4, alpha = 1.0}
local = {batch_size = 8, lr = 0.1}
"""
AXES = """
set = ["rounds=3"]
seeds = [1, 42]
[[axis]]
key = "partition.alpha"
values = [0.5, 2.0]
[[axis]]
name = "federation"
keys = ["partition.clients", "cohort"]
rows = [[4, 4], [4, 1]]
[[axis]]
name = "method"
[[axis.point]]
label = "slow"
set = ["local.lr=0.01"]
[[axis.point]]
label = "Prox, fast"
set = ["local.lr=0.2", "local.correction={ name = \\"prox\\", mu = 0.1 }"]
[[row]]
label = "centralised"
set = ["partition={ name = \\"iid\\", clients = 1 }", "cohort=1"]
"""


def study(folder: Path, text: str) -> Path:
    return write(folder / "mine.toml", text, BASE)


def test_cells_are_the_product_of_the_axes_and_what_stands_beside_them(tmp_path: Path) -> None:
    read = read_study(study(tmp_path, AXES))
    assert read.name == "mine"
    assert len(read.cells) == 2 * (2 * 2 * 2 + 1)
    first, last = read.cells[0], read.cells[-1]
    assert first.name == "alpha-0.5-federation-4-4-slow-seed1"
    assert first.labels == {"alpha": "0.5", "federation": "4 4", "method": "slow"}
    assert (first.plan.rounds, first.plan.cohort, first.plan.seed) == (3, 4, 1)
    assert last.name == "centralised-seed42"
    assert last.plan.partition == read_plan({"partition": {"name": "iid", "clients": 1}}).partition
    fast = [cell for cell in read.cells if cell.labels.get("method") == "Prox, fast"]
    assert len(fast) == 8
    assert all(cell.plan.local.correction.mu == 0.1 for cell in fast)  # type: ignore[attr-defined]
    assert [cell.seed for cell in read.cells] == [1] * 9 + [42] * 9


def test_only_takes_axes_by_name_or_key_and_seeds(tmp_path: Path) -> None:
    read = read_study(study(tmp_path, AXES))
    assert len(select_cells(read, [])) == 18
    assert len(select_cells(read, ["seed=1"])) == 9
    assert (
        len(select_cells(read, ["partition.alpha=0.5"]))
        == len(select_cells(read, ["alpha=0.5"]))
        == 8
    )
    assert len(select_cells(read, ["method=prox*", "seed=42", "alpha=0.5", "alpha=2.0"])) == 4
    assert [cell.name for cell in select_cells(read, ["row=centralised", "seed=1"])] == [
        "centralised-seed1"
    ]
    for bad, said in (
        ("seed=7", "leaves no cell; there are {'seed': ['1', '42']}"),
        ("metod=slow", "no axis called 'metod'. Did you mean 'method'?"),
        ("seed", "KEY=VALUE"),
    ):
        with pytest.raises(PlanError) as error:
            select_cells(read, [bad])
        assert said in str(error.value)


BAD = {
    "no plan key": ('[[axis]]\nkey = "partition.alhpa"\nvalues = [1.0]', "no key called 'alhpa'"),
    "out of range": (
        '[[axis]]\nkey = "partition.alpha"\nvalues = [1.0, -1.0]',
        "alpha must be positive",
    ),
    "alike": ('[[axis]]\nkey = "local.lr"\nvalues = [0.1, 0.10000]', "two points are called '0.1'"),
    "alike plans": (
        '[[axis]]\nkey = "engine"\nvalues = ["inprocess", "processes"]',
        "two cells alike: inprocess-seed1",
    ),
    "same seeds": ("seeds = [1, 1]\n[[row]]\nlabel = 'a'", "two cells alike: a-seed1 and a-seed1"),
    "empty": ("seeds = [1]", "the study is empty: give it an [[axis]]"),
    "no seeds": ("seeds = []\n[[row]]\nlabel = 'a'", "the study is empty: seeds = []"),
    "no values": ('[[axis]]\nkey = "rounds"', "has a key without values"),
    "both": (
        '[[axis]]\nkey = "rounds"\nvalues = [1]\nkeys = ["seed"]\nrows = [[1]]',
        "takes `key` and `values`, or",
    ),
    "short row": (
        '[[axis]]\nkeys = ["rounds", "cohort"]\nrows = [[1]]',
        "has 2 keys, but a row [1] of 1 values",
    ),
    "unknown word": ('[[axes]]\nkey = "rounds"', "no key called 'axes'. Did you mean 'axis'?"),
    "two of a name": (
        '[[axis]]\nkey = "rounds"\nvalues = [1]\n[[axis]]\nkey = "rounds"\nvalues = [2]',
        "'rounds'",
    ),
    "no name": ('[[axis]]\n[[axis.point]]\nlabel = "a"', "of points needs a `name`"),
    "no label": ('[[row]]\nset = ["rounds=1"]', "needs the key 'label'"),
    "no TOML": ("seeds = = 1", "the study is no TOML"),
}


@pytest.mark.parametrize("text, said", BAD.values(), ids=BAD.keys())
def test_a_bad_study_is_one_clear_line_before_anything_is_made(
    tmp_path: Path, text: str, said: str
) -> None:
    result = fedpeft("sweep", study(tmp_path, text), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in result.stderr
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--out", "--keep"])
@pytest.mark.parametrize("more", [[], ["--estimate"]], ids=["run", "estimate"])
def test_a_file_is_no_folder_for_cells(tmp_path: Path, option: str, more: list[str]) -> None:
    file = write(tmp_path / "file", "")
    result = fedpeft("sweep", study(tmp_path, '[[row]]\nlabel = "a"'), option, file, *more)
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {file} is a file: give {option} a folder\n",
    )


def ended(cell: Cell, wall: float, error: str = "") -> CellOutcome:
    return CellOutcome(cell, None, wall=wall, error=error)


def test_time_left_is_that_of_the_cells_that_are_most_alike(tmp_path: Path) -> None:
    slow = '[[axis]]\nname = "pace"\n[[axis.point]]\nlabel = "slow"\nset = ["local.lr=0.2"]\n'
    text = f'seeds = [1, 2]\n{slow}[[axis.point]]\nlabel = "fast"\nset = ["local.lr=0.1"]\n'
    read = read_study(write(tmp_path / "mine.toml", text, BASE))
    slow1, fast1, slow2, fast2 = read.cells
    done = [ended(slow1, 300.0), ended(fast1, 20.0)]
    assert (seconds_of(slow2, done), seconds_of(fast2, done), seconds_of(fast2, [])) == (
        300.0,
        20.0,
        None,
    )
    assert seconds_of(slow2, [done[1]]) == 20.0  # nothing is more alike

    cell_store = CellStore(read, tmp_path / "out")
    assert _left(cell_store, read.cells, done, 1) == "5 min 20 s left"
    assert _left(cell_store, read.cells, done, 2) == "2 min 40 s left"
    assert _left(cell_store, read.cells, [*done, ended(slow2, 7.0, "it failed")], 1) == "20 s left"
    append_round(cell_store.place(slow2), {"round": 1})  # the first of two
    assert _left(cell_store, read.cells, done, 1) == "2 min 50 s left"
    assert _left(cell_store, read.cells, [], 1) == ""

    found = estimate_study(cell_store, read.cells, done, 2, [])
    assert (found.cells, found.finished, found.source) == (
        4,
        2,
        "from the seconds of 2 finished cells",
    )
    assert found.hours == pytest.approx((300 + 20) / 2 / 3600)
    whole = estimate_study(cell_store, read.cells[:2], done, 1, [])
    assert (whole.finished, whole.hours) == (2, 0.0)


def test_a_study_that_cannot_be_read(tmp_path: Path) -> None:
    result = fedpeft("sweep", tmp_path / "none.toml")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "none.toml: the study cannot be read: No such file" in result.stderr
    path = write(tmp_path / "study.toml", 'base = "gone.toml"\n[[row]]\nlabel = "a"')
    assert "the base plan gone.toml cannot be read" in fedpeft("sweep", path).stderr


def test_the_interval_is_students() -> None:
    # t(0.975, 2) = 4.302653, s = 1, n = 3
    assert interval([1.0, 2.0, 3.0]) == {
        "mean": 2.0,
        "low": pytest.approx(2 - 4.302653 / 3**0.5),
        "high": pytest.approx(2 + 4.302653 / 3**0.5),
        "each": [1.0, 2.0, 3.0],
    }
    assert interval([0.5])["low"] is None
    assert interval([0.2, 0.4])["low"] == 0.2, "a t interval of two values says nothing"
    assert interval([0.97, 0.99, 0.98], share=True)["high"] == 1.0


def test_a_task_without_accuracy_has_its_loss_in_the_table(tmp_path: Path) -> None:
    study = read_study(write(tmp_path / "study.toml", BASE + '[[row]]\nlabel = "a"\n'))
    summary = {
        "held_out_last": {"loss": 1.5},
        "bytes_up": 1,
        "bytes_down": 1,
        "seconds": 1.0,
        "trainable_params": 9,
    }
    made = {**summary, "bytes_up_per_client_round": 1024}
    rows = rows_of(study, [CellOutcome(study.cells[0], tmp_path, made)])
    assert "| row | seeds | loss | trained | up | in all |" in markdown(
        study, rows, "fedpeft sweep"
    )
    assert "| a | 1 | 1.500 | 9 | 1.0 KiB | 0.0 KiB |" in markdown(study, rows, "fedpeft sweep")
    scored = rows_of(study, [CellOutcome(study.cells[0], tmp_path, made | {"accuracy_last": 0.5})])
    assert "| a | 1 | 50.0 | - | - | - | - | 9 |" in markdown(study, scored, "fedpeft sweep")


def test_the_table_tells_how_a_result_serves_each_client(tmp_path: Path) -> None:
    study = read_study(write(tmp_path / "study.toml", BASE + '[[row]]\nlabel = "a"\n'))
    clients = {"mean": 0.9, "worst_decile": 0.7, "std": 0.05}
    made = {
        "client_accuracy": clients,
        "bytes_up": 1,
        "bytes_down": 1,
        "seconds": 1.0,
        "trainable_params": 9,
    }
    made |= {"accuracy_last": 0.5, "bytes_up_per_client_round": 1024}
    told = markdown(
        study, rows_of(study, [CellOutcome(study.cells[0], tmp_path, made)]), "fedpeft sweep"
    )
    assert "| seeds | last | best | clients | worst tenth | spread | trained |" in told
    assert "| 1 | 50.0 | - | 90.0 | 70.0 | 5.0 | 9 |" in told
    own = {"accuracy": {"worst_tenth": 0.6, "each": {"a": 0.6, "b": 0.8}}}
    made |= {"own_held_out": {"examples": {"a": 5, "b": 5}, "metrics": own}}
    told = markdown(
        study, rows_of(study, [CellOutcome(study.cells[0], tmp_path, made)]), "fedpeft sweep"
    )
    assert "| spread | own worst tenth | own spread | trained |" in told
    assert "| 5.0 | 60.0 | 10.0 | 9 |" in told


@given(
    st.dictionaries(
        st.text("abc_", min_size=1),
        st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    )
)
def test_a_value_of_an_axis_is_read_back_as_it_was(arguments: dict[str, object]) -> None:
    import tomllib

    from fedpeft.studies.study import _toml

    assert tomllib.loads(f"value = {_toml([arguments])}")["value"] == [arguments]
