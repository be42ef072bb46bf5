"""What a report says first, to who does not know the study."""

from pathlib import Path

from cells import write_cell, write_study

from fedpeft.report.groups import sections
from fedpeft.report.introduction import describe_results, introduce, title_of
from fedpeft.report.page import Report, html
from fedpeft.report.reading import read_cells


def test_the_page_says_first_what_was_compared_and_what_it_sends(tmp_path: Path) -> None:
    write_study(tmp_path)
    [section] = sections(read_cells([tmp_path])[0])
    assert introduce(section) == [
        "This page compares 3 ways to tune small on examples of 2 owners. The examples stay with "
        "their owners, and only what was tuned is sent.",
        "Training took 3 rounds.",
    ]
    assert (
        "A client sends 100 B in a round with head, the least of all, and 2.0 KiB with lora, the "
        "most; all weights of the model would be 3.9 KiB."
    ) in describe_results(section)


def test_groups_that_end_level_have_no_best_and_a_plan_without_a_name_tells_its_data(
    tmp_path: Path,
) -> None:
    for method in ("bias", "lora"):
        where, plan = tmp_path / method, {"name": "run", "cohort": 9}
        write_cell(where, [0.4, 0.5], method=method, plan=plan)
    found = sections(read_cells([tmp_path])[0])
    assert title_of(found) == "digits, image-classification"
    page = html(Report(found, (), ""))
    assert "<h1>digits, image-classification</h1>" in page
    assert 'class="of"' not in page, "the heading is not said twice"
    assert introduce(found[0])[1] == "Training took 2 rounds, with 2 owners in each."
    words = " ".join(describe_results(found[0]))
    assert "After the last round all groups have accuracy 50.0 %." in words
    assert "Best" not in words
    assert " in a round with each of them" in words and "the most" not in words
