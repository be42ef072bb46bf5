"""The report of what was read of someone's data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from example_files import save_picture
from PIL import Image
from running import PLAN, fedpeft

from fedpeft import DataError, read_plan
from fedpeft.core.types import Examples, Table
from fedpeft.data.client_data import Partitioned
from fedpeft.data.images import Images
from fedpeft.data.inspect import Report, describe_full_texts, inspect
from fedpeft.registry import build


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two classes and an empty one; one picture is deep, one broken, one file is no picture."""
    folder = tmp_path / "scans"
    for split, count in (("train", 4), ("test", 1)):
        for name in ("healthy", "ill"):
            for k in range(count):
                save_picture(folder / split / name / f"Miller-{k}.png", (10, 20, 250), (8, 6))
    deep = np.array([[7, 4000]], dtype=np.uint16)
    Image.fromarray(deep).save(folder / "train" / "ill" / "Miller-0.png")
    (folder / "train" / "ill" / "Smith.png").write_bytes(b"no picture")
    (folder / "train" / "ill" / "Smith.xml").touch()
    (folder / "train" / "rare").mkdir()
    return folder


def test_pictures_are_counted_and_measured(scans: Path) -> None:
    found = inspect(Images(str(scans)).load())
    assert (found.train, found.test) == (9, 2)
    assert found.classes == {"healthy": (4, 1), "ill": (5, 1), "rare": (0, 0)}
    assert found.left_out == {".xml files": 1}
    assert found.pictures == [
        "10 can be read, 1 cannot",
        "sizes: 9 of 8x6; the narrowest 2x1, the widest 8x6",
        "kinds: 9 RGB, 1 I;16",
        "values: from 7 to 4000; half of the pictures reach 250",
    ]
    lines = found.lines
    assert "3 classes" in lines and "  1 .xml file" in lines
    assert any(line.startswith("  rare") and "none here: another owner" in line for line in lines)
    assert len(lines) < 24


def test_the_doctor_writes_it_to_a_file_that_names_no_patient(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.txt"
    ended = fedpeft("doctor", scans, "--out", out)
    # No run would begin with a picture that cannot be read.
    assert ended.exit_code == 1 and "data.skip_unreadable = true" in ended.stdout
    text = out.read_text()
    assert text.startswith("fedpeft ") and "10 can be read, 1 cannot" in text
    assert "10 can be read, 1 cannot" in ended.stdout and str(out) in ended.stdout
    assert "Miller" not in text and "Smith" not in text
    bad = fedpeft("doctor", tmp_path / "nowhere", "--out", out)
    assert bad.exit_code == 1 and "mend it" in bad.stdout
    unwritable = fedpeft("doctor", scans, "--out", tmp_path)
    assert unwritable.exit_code == 1 and "--out" in unwritable.stdout


def test_the_doctor_of_a_node_reports_what_the_task_leaves_of_its_data(tmp_path: Path) -> None:
    """And a task without classes asks for none."""
    (tmp_path / "x.csv").write_text("a,y\n1,2\n2,\n3,4\n,5\n5,6\n")
    (tmp_path / "plan.toml").write_text(
        'nodes.names = ["north"]\nmethod = "full"\ndata.path = "x.csv"\ndata.name = "table"\n'
        'data.label = "none"\ntask = { name = "regression", features = ["a"], target = "y" }\n'
    )
    out, words = tmp_path / "r.txt", ("--data", tmp_path / "x.csv", "--name", "north")
    ended = fedpeft("doctor", tmp_path / "plan.toml", *words, "--out", out)
    assert "ok  data: 3 training examples of 1 client" in ended.stdout
    lines = out.read_text().splitlines()
    assert "3 examples; the data have no test split of their own" in lines
    assert lines[-2:] == ["  1 row without 'y'", "  1 row without 'a'"]


def test_texts_and_columns(tmp_path: Path) -> None:
    rows = ["text,label,clinic", "one two,0,a", "one two,1,a", "three,0,b", "six six six,1,"]
    (tmp_path / "x.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "set.toml").write_text('task = "text-classification"\n')
    ended = fedpeft(
        "doctor", tmp_path / "x.csv", "-o", tmp_path / "r", "--set", "data.test_fraction=0.5"
    )
    assert ended.exit_code == 0, ended.output
    text = (tmp_path / "r").read_text()
    assert "2 examples to train on; 2 are held out" in text
    assert "characters: 5 at least, 7 in the middle, 11 at most" in text
    assert "words: 1 at least, 2 in the middle, 3 at most" in text
    assert "0 are blank, and 1 are there before already" in text
    assert "six six" not in text


def test_pairs_are_repeated_where_both_texts_are() -> None:
    table = Table({"text": ["a", "a", "b", "b"], "answer": ["x", "y z", "x", "x"], "site": [1] * 4})
    none = Table({})
    found = inspect(Examples(table, none, ()), text_pair="answer")
    assert found.texts[-1] == "0 pairs have a blank text, and 1 are there before already"
    assert found.texts[3] == "answer: words: 1 at least, 1 in the middle, 2 at most"
    assert found.columns == ["site: 1 different values"]
    alone = inspect(Examples(table, none, ()))
    assert alone.texts[-1] == "0 are blank, and 2 are there before already"


def test_the_doctor_reads_data_as_an_owner_s_and_an_invitation_as_a_plan(tmp_path: Path) -> None:
    rows = ["text,label", *(f"t{k},{k % 2}" for k in range(10))]
    (tmp_path / "x.csv").write_text("\n".join(rows) + "\n")
    ended = fedpeft("doctor", tmp_path / "x.csv", "-o", tmp_path / "r")
    assert "10 examples; the data have no test split of their own" in ended.stdout
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "invitation.json").write_text("{}")
    bad = fedpeft("doctor", tmp_path / "study")
    assert bad.exit_code == 2 and "is an invitation: add --data PATH --name NAME" in bad.output


def test_columns_that_may_name_clients() -> None:
    table = Table({"text": ["a", "b", "c"], "site": ["x", "y", None], "n": torch.arange(3)})
    found = inspect(Examples(table, table, ()))
    assert found.columns == ["site: 2 different values, 1 missing"]
    assert found.classes == {} and found.pictures == ()


def test_of_many_classes_the_smallest_are_shown() -> None:
    label = torch.arange(40).repeat_interleave(torch.arange(1, 41))
    table = Table({"image": torch.zeros(len(label), 1, 4, 5, dtype=torch.uint8), "label": label})
    found = inspect(Examples(table, table, tuple(f"c{k}" for k in range(40))))
    shown = [
        line.split()[0] for line in found.lines if line.startswith("  c") and "class" not in line
    ]
    assert shown == [f"c{k}" for k in range(12)]
    assert "40 classes, of which these are the 12 smallest" in found.lines
    assert found.pictures[2] == "kinds: 1,640 with 1 channel"


def test_pictures_of_which_none_can_be_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(5):
            (tmp_path / name / f"{k}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of 10 pictures can be read"):
        inspect(Images(str(tmp_path)).load())


def test_texts_that_are_cut_are_counted() -> None:
    """Of lengths 1, 3 and 3, two fill all of 3 tokens."""
    plan = read_plan({"task": {"name": "text-classification", "model": "x", "max_length": 3}})
    mask = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 1]]).bool()
    data = Partitioned(plan.task, {"attention_mask": mask}, {}, {"a": torch.arange(3)})
    told = describe_full_texts(plan.task, data)
    assert told.startswith("2 of 3 texts fill all 3 tokens")
    assert told.endswith("the middle one has 3")
    assert describe_full_texts(build("task", "parts:Points"), data) == ""


def test_before_training_some_pictures_are_looked_at_and_it_says_how_many(scans: Path) -> None:
    """Of nine and two pictures every fifth of those to train on, and both that are held out."""
    found = inspect(Images(str(scans)).load(), most=2)
    assert found.pictures[0] == "4 of 11 were looked at: 4 can be read, 0 cannot"
    assert (found.unreadable, inspect(Images(str(scans)).load()).unreadable) == (0, 1)
    assert (found.train, found.test) == (9, 2)


def test_large_pictures_cost_no_minutes_before_training(scans: Path) -> None:
    """Of pictures of 48 pixels, two of each side are looked at for 49."""
    for one in (scans / "train" / "ill").iterdir():
        one.unlink()
    for k in range(4):
        save_picture(scans / "train" / "ill" / f"{k}.png", (1, 2, 3), (8, 6))
    found = inspect(Images(str(scans)).load(), most=400, pixels=49)
    assert found.pictures[0] == "4 of 10 were looked at: 4 can be read, 0 cannot"


def test_it_is_shown_before_training_wherever_examples_are_read(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    shown = fedpeft("run", tmp_path / "plan.toml", "--set", "rounds=1", "-o", tmp_path / "run")
    lines = shown.stdout.splitlines()
    assert lines[0] == "data, as they were read here"
    assert "examples to train on" in lines[1]
    assert "round 1/1" not in "".join(lines[: lines.index("  3 classes")])
    pytest.importorskip("cryptography")
    study, out = tmp_path / "study", tmp_path / "c.safetensors"
    fedpeft("invite", tmp_path / "plan.toml", "-o", study, "--set", "rounds=1")
    given = fedpeft("contribute", study, "--client", 0, "-o", out, "--yes", "--memory", tmp_path)
    assert given.exit_code == 0, given.output
    assert given.stdout.index("data, as they were read") < given.stdout.index("You agree to")


def test_data_without_a_test_split_are_not_said_to_be_all_trained_on() -> None:
    """A plan with `partition.held_out` sets a share apart, and a line says so."""
    lines = Report(train=90, test=0, classes={}, left_out={}).lines
    assert lines == ["90 examples; the data have no test split of their own"]
