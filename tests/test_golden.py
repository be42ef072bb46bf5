"""The tool that compares two versions of the library finds what differs, and nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tools.golden.__main__ import Verdict, main, select_plans
from tools.golden.comparing import Difference, differences
from tools.golden.plans import FILE, read_plans
from tools.golden.records import Record, read_parameters, read_record

ROUND: dict[str, Any] = {
    "round": 1,
    "clients": {"a": {"down": 100, "up": 90, "weight": 3.0}, "b": {"down": 100, "up": 80}},
    "bytes_down": 200,
    "metrics": {"loss": 0.5},
    "vote": {"strength": 1.0, "scores": [{"score": 0.25}, {"score": 0.5}]},
    "privacy": None,
}
OLD = Record({"head.weight": "1f", "c/head.weight": "2e"}, [ROUND])


def stored(path: Path, kind: str, tensors: Mapping[str, bytes]) -> Path:
    """A safetensors file of tensors of uint8, as a checkpoint has it."""
    header: dict[str, Any] = {"__metadata__": {"format": kind}}
    body = b""
    for name, content in tensors.items():
        offsets = [len(body), len(body) + len(content)]
        header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": offsets}
        body += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def changed(**values: Any) -> Record:
    return Record(OLD.parameters, [{**ROUND, **values}])


def words(new: Record, bytes_vary: int = 0) -> list[tuple[str, str]]:
    return [(one.section, one.words) for one in differences(OLD, new, bytes_vary)]


def test_equal_records_have_no_difference() -> None:
    assert words(changed()) == []
    without = {key: x for key, x in ROUND.items() if key != "privacy"}
    assert words(Record(OLD.parameters, [without])) == []


def test_one_changed_bit_of_a_tensor_is_found(tmp_path: Path) -> None:
    old = stored(tmp_path / "old", "fedpeft-state-1", {"params/w": b"\x00\x01", "params/b": b"x"})
    new = stored(tmp_path / "new", "fedpeft-state-1", {"params/w": b"\x00\x03", "params/b": b"x"})
    before, after = (Record(read_parameters(path), []) for path in (old, new))
    assert differences(before, before) == []
    [found] = differences(before, after)
    assert found == Difference("parameters", "the tensor w has other bits (1 of 2 tensors differ)")


def test_a_tensor_of_another_type_with_the_same_bytes_differs(tmp_path: Path) -> None:
    path = stored(tmp_path / "file", "fedpeft-state-1", {"params/w": b"abcd"})
    flat = read_parameters(path)
    path.write_bytes(path.read_bytes().replace(b'"U8"', b'"I8"'))
    assert read_parameters(path).keys() == flat.keys()
    assert read_parameters(path) != flat


def test_both_formats_of_a_checkpoint_come_to_the_same_names(tmp_path: Path) -> None:
    first = {
        "params/head.weight": b"a",
        "params/c/head.weight": b"b",
        "params/exact/layer.left": b"c",
        "memory/m/head.weight": b"d",
    }
    second = {
        "shared/exact/layer.left": b"c",
        "memory/momentum/m/head.weight": b"e",
        "shared/c/head.weight": b"b",
        "params/head.weight": b"a",
    }
    old = read_parameters(stored(tmp_path / "old", "fedpeft-state-1", first))
    new = read_parameters(stored(tmp_path / "new", "fedpeft-state-2", second))
    assert old == new
    assert list(old) == ["c/head.weight", "exact/layer.left", "head.weight"]


def test_an_unknown_format_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    path = stored(tmp_path / "file", "fedpeft-state-9", {"params/w": b"a"})
    with pytest.raises(ValueError, match=r"'fedpeft-state-9'.*fedpeft-state-1.*add a reader"):
        read_parameters(path)


def test_what_is_gone_and_what_is_new_is_told() -> None:
    new = Record({"head.weight": "1f", "exact/x": "3d"}, OLD.rounds)
    assert words(new) == [
        ("parameters", "the tensor c/head.weight is gone (2 of 3 tensors differ)"),
        ("parameters", "the tensor exact/x is new (2 of 3 tensors differ)"),
    ]
    assert words(Record(OLD.parameters, [])) == [("ledger", "1 rounds became 0")]


def test_a_changed_byte_count_is_told_by_client_and_round() -> None:
    clients = {**ROUND["clients"], "a": {"down": 100, "up": 93, "weight": 3.0}}
    told = [
        ("bytes", "round 1, client a: up was 90 and is 93"),
        ("bytes", "round 1: bytes_down was 200 and is 206"),
    ]
    assert words(changed(clients=clients, bytes_down=206)) == told
    assert words(changed(clients=clients, bytes_down=206), 2) == told
    assert words(changed(clients=clients, bytes_down=206), 3) == []  # 2 clients: 6 in all
    assert words(changed(clients=clients, bytes_down=207), 3) == [
        ("bytes", "round 1: bytes_down was 200 and is 207")
    ]


def test_a_missing_client_is_told() -> None:
    only = {"a": ROUND["clients"]["a"]}
    assert words(changed(clients=only)) == [("ledger", "round 1, client b is gone")]
    more = {**ROUND["clients"], "c": {"down": 1}}
    assert words(changed(clients=more)) == [("ledger", "round 1, client c is new")]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"metrics": {"loss": 0.5000000000000001}},
            "metrics.loss was 0.5 and is 0.5000000000000001",
        ),
        ({"metrics": {"loss": None}}, "metrics.loss was 0.5 and is None"),
        ({"metrics": {}}, "metrics.loss was 0.5 and is absent"),
        (
            {"vote": {"strength": 1.0, "scores": [{"score": 0.25}, {"score": 0.75}]}},
            "vote.scores[1].score was 0.5 and is 0.75",
        ),
        ({"privacy": {"epsilon": 1.0}}, "privacy was absent and is {'epsilon': 1.0}"),
        ({"aggregation_error": -0.0}, "aggregation_error was absent and is -0.0"),
    ],
)
def test_the_ledger_is_compared_to_the_bit(values: dict[str, Any], told: str) -> None:
    assert words(changed(**values)) == [("ledger", f"round 1: {told}")]


def test_a_failure_or_a_weight_of_a_client_is_part_of_the_ledger() -> None:
    clients = {**ROUND["clients"], "a": {"down": 100, "up": 90, "weight": 3, "failed": "away"}}
    assert words(changed(clients=clients)) == [
        ("ledger", "round 1, client a: failed was absent and is 'away'"),
        ("ledger", "round 1, client a: weight was 3.0 and is 3"),
    ]


def test_time_is_left_out_of_a_record(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text('{"round":1,"seconds":0.5,"metrics":{}}\n')
    (tmp_path / "checkpoint").mkdir()
    stored(tmp_path / "checkpoint" / "state.safetensors", "fedpeft-state-1", {"params/w": b"a"})
    assert read_record(tmp_path).rounds == [{"round": 1, "metrics": {}}]


def test_bytes_may_be_allowed_to_differ_and_nothing_else() -> None:
    heavier = Verdict("plan", "", [Difference("bytes", "more")], (1.0, 1.0))
    other = Verdict("plan", "", [Difference("ledger", "other")], (1.0, 1.0))
    broken = Verdict("plan", "exit status 2", [], (1.0, 1.0))
    told = [[one.passed(may) for may in (False, True)] for one in (heavier, other, broken)]
    assert told == [[False, True], [False, False], [False, False]]


def test_a_second_text_takes_the_place_of_a_plans_own_keys() -> None:
    text = """
    base = { rounds = 3, cohort = 4 }
    [plans.one]
    steps = "merge"
    cohort = 2
    personal = ["x"]
    v2 = { cohort = 2, own = ["x"] }
    [plans.two]
    slow = true
    bytes_vary = 5
    """
    one, two = read_plans(text)
    assert one.steps == "merge" and two.bytes_vary == 5
    assert select_plans([one, two], []) == [one]
    assert select_plans([one, two], [], slow=True) == [one, two]
    assert select_plans([one, two], ["two"]) == [two]
    assert one.texts[1] == 'name = "one"\nrounds = 3\ncohort = 2\npersonal = [\n    "x",\n]\n'
    assert one.texts[2] == 'name = "one"\nrounds = 3\ncohort = 2\nown = [\n    "x",\n]\n'
    assert two.texts[1] == two.texts[2] == 'name = "two"\nrounds = 3\ncohort = 4\n'
    with pytest.raises(ValueError, match=r"plans.one.steps = 'walk'"):
        read_plans('base = {}\n[plans.one]\nsteps = "walk"')


def test_the_plans_have_names_of_their_own_and_both_texts() -> None:
    plans = read_plans(FILE.read_text())
    assert len(plans) >= 14
    assert all(set(plan.texts) == {1, 2} for plan in plans)


def test_what_does_not_exist_is_named_and_nothing_passes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--only", "nothing"]) == 1
    assert "no plan 'nothing'; known: fedavg" in capsys.readouterr().err
    assert main(["--only", "fedavg", "--against", "nowhere"]) == 1
    assert "the commit nowhere cannot be read" in capsys.readouterr().err
