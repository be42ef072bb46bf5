"""`fedpeft report`: the page, the files beside it, and what happens with folders that are no
good."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cells import write_cell, write_study
from running import PLAN, fedpeft

TOLD = {"base": 0.24, "tuned": 0.3, "difference": 0.06}
EVIL = '</script><img src=x onerror="alert(1)">{{7*7}}&'


class Page(HTMLParser):
    """The elements of a page, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def text(study: Path) -> str:
    out = study.parent / "page.html"
    result = fedpeft("report", study, "-o", out, "--csv", "--latex")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return out.read_text(encoding="utf-8")


def test_the_page_loads_nothing(text: str) -> None:
    elements = Page(text).elements
    assert not [tag for tag, values in elements if "src" in values or tag == "iframe"]
    assert [values["href"] for tag, values in elements if tag == "link"] == ["data:,"]
    assert "@import" not in text and not re.search(r"url\(\s*['\"]?http", text)
    policies = [
        str(values["content"])
        for _, values in elements
        if "Content-Security-Policy" in values.values()
    ]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")


def test_the_page_tells_in_words_what_came_out(text: str) -> None:
    words = " ".join(" ".join(Page(text).words).split())
    assert "9 runs in 3 groups; seeds: 1, 2, 3." in words
    assert (
        "Best is bias with accuracy 72.0 ± 2.5 % after the last round; worst is head with 42.0 ± "
        "2.5 %." in words
    )
    assert "On the Pareto front of accuracy and bytes sent: head; bias." in words
    assert "Student's 95 % t interval" in words
    assert "python 3.11.7, fedpeft 0.1.0, on cpu a processor" in words
    assert "fedpeft report" in words and "rounds = 3" in words


def test_every_figure_is_there(text: str) -> None:
    found = [
        values["data-figure"]
        for tag, values in Page(text).elements
        if tag == "div" and "data-figure" in values
    ]
    assert found == [
        "rounds",
        "bytes-up",
        "bytes-down",
        "axis-method",
        "clients",
        "epsilon",
        "partition",
    ]


def test_what_the_runs_do_not_hold_is_said(tmp_path: Path) -> None:
    folder = write_cell(tmp_path / "run", [0.5])
    (folder / "partition.json").unlink()
    assert fedpeft("report", folder, "-o", tmp_path / "page.html").exit_code == 0
    page = Page((tmp_path / "page.html").read_text())
    words = " ".join(page.words)
    for left_out in (
        "the accuracy of each client",
        "no round here was private",
        "keeps its partition.json",
    ):
        assert left_out in words
    drawn = [
        values["data-figure"]
        for tag, values in page.elements
        if tag == "div" and "data-figure" in values
    ]
    assert drawn == ["rounds", "bytes-up", "bytes-down"]


def test_the_tables_as_files(study: Path, text: str) -> None:
    with (study.parent / "page-groups.csv").open() as file:
        lines = {row["group"]: row for row in csv.DictReader(file)}
    assert list(lines) == ["bias", "head", "lora"]
    assert float(lines["bias"]["accuracy, last"]) == pytest.approx(0.72)
    assert float(lines["bias"]["up, client and run"]) == 1500
    with (study.parent / "page-rounds.csv").open() as file:
        rounds = list(csv.DictReader(file))
    assert len(rounds) == 27 and [row["epsilon"] for row in rounds[:3]] == ["0.5", "1.0", "1.5"]
    latex = (study.parent / "page.tex").read_text()
    assert "\\toprule" in latex and "bias & 3 & 72.0 $\\pm$ 2.5 \\% & 95 \\% t interval" in latex


def test_the_same_runs_make_the_same_page(study: Path, text: str) -> None:
    again = study.parent / "page.html"
    before = again.read_bytes()
    assert fedpeft("report", study, "-o", again, "--csv", "--latex").exit_code == 0
    assert again.read_bytes() == before


def test_names_from_run_folders_are_only_text(tmp_path: Path) -> None:
    kinds = {"classes": (EVIL, "y"), "failed": EVIL, "each": {EVIL: 0.5}}
    write_cell(tmp_path / "cells" / "evil", [0.5], method=EVIL, plan={"name": EVIL}, **kinds)  # type: ignore[arg-type]
    out = tmp_path / "page.html"
    assert fedpeft("report", tmp_path / "cells", "-o", out, "--csv", "--latex").exit_code == 0
    text = out.read_text()
    assert [values for tag, values in Page(text).elements if tag == "img"] == []
    assert "<img src=x" not in text and EVIL in Page(text).words
    assert [json.loads(found) for found in re.findall(r'class="specs">(.*?)</script>', text)]
    latex = (tmp_path / "page.tex").read_text()
    assert r"\{\{7*7\}\}\&" in latex


def test_sampled_answers_are_shown_as_they_are(tmp_path: Path) -> None:
    folder = write_cell(tmp_path / "run", [0.5])
    said = {"given": "Who?", "before": EVIL, "after": "A long answer, " * 5, "truth": "She."}
    (folder / "samples.json").write_text(json.dumps({"round": 1, "samples": [said]}))
    assert fedpeft("report", folder, "-o", tmp_path / "page.html").exit_code == 0
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert all(
        words in page.words for words in (*said.values(), "Sampled answers", "untuned model")
    )
    assert "<img src=x" not in text
    assert "ROUGE of sampled answers" not in page.words
    scores = {"before": {"rouge1": 0.1234, "rougeL": 0.1}, "after": {"rouge1": 0.5, "rougeL": 0.25}}
    told = {"round": 1, "samples": [said], "rouge": scores}
    (folder / "samples.json").write_text(json.dumps(told))
    assert fedpeft("report", folder, "-o", tmp_path / "page.html").exit_code == 0
    words = Page((tmp_path / "page.html").read_text()).words
    at = words[words.index("ROUGE of sampled answers") :]
    assert all(word in at for word in ("rouge1", "0.1234", "0.2500", "tuned model"))
    (folder / "samples.json").write_text('{"round": 1, "samples": [{"given": 3}]}')
    broken = fedpeft("report", folder, "-o", tmp_path / "page.html")
    assert broken.exit_code != 0 and "samples.json is damaged" in broken.stderr


def test_benchmarks_have_a_line_each(tmp_path: Path) -> None:
    folder = write_cell(tmp_path / "run", [0.5])
    kinds = {kind: {"value": x, "low": x - 0.02, "high": x + 0.02} for kind, x in TOLD.items()}
    told = {
        "benchmark": EVIL,
        "shots": 5,
        "round": 3,
        "questions": 90,
        "left_out": 40,
        "chance": 0.25,
    }
    (folder / "benchmarks.json").write_text(
        json.dumps({"benchmarks": [{**told, "metrics": {"acc": kinds}}]})
    )
    assert fedpeft("report", folder, "-o", tmp_path / "page.html").exit_code == 0
    page = Page((tmp_path / "page.html").read_text())
    for words in ("Benchmarks", "50", "25.0%", "24.0 (22.0 to 26.0)", "+6.0 (+4.0 to +8.0)", EVIL):
        assert words in page.words, words
    (folder / "benchmarks.json").write_text(json.dumps({"benchmarks": [told]}))
    broken = fedpeft("report", folder, "-o", tmp_path / "page.html")
    assert (
        broken.exit_code != 0
        and "benchmarks.json is damaged: benchmarks.0.metrics" in broken.stderr
    )


def test_a_measured_epsilon_stands_beside_the_promised_one(tmp_path: Path) -> None:
    folder = write_cell(tmp_path / "run", [0.5])
    told = {
        "unit": EVIL,
        "canaries": 1000,
        "rounds": 6,
        "guesses": 350,
        "right": 271,
        "confidence": 0.95,
        "epsilon_lower": 1.0625,
        "epsilon_upper": 7.96,
        "delta": 1e-3,
        "holds": True,
    }
    (folder / "audit.json").write_text(json.dumps(told))
    assert fedpeft("report", folder, "-o", tmp_path / "page.html").exit_code == 0
    page = Page((tmp_path / "page.html").read_text())
    for words in ("Epsilon, measured and promised", f"one {EVIL}", "1,000", "1.06", "7.96"):
        assert words in page.words, words
    (folder / "audit.json").write_text(json.dumps({**told, "epsilon_upper": None}))
    assert fedpeft("report", folder, "-o", tmp_path / "page.html").exit_code == 0
    assert "–" in Page((tmp_path / "page.html").read_text()).words
    (folder / "audit.json").write_text(json.dumps({**told, "epsilon_lower": "none"}))
    broken = fedpeft("report", folder, "-o", tmp_path / "page.html")
    assert broken.exit_code != 0 and "audit.json is damaged: epsilon_lower" in broken.stderr


def test_a_formula_is_no_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    write_cell(tmp_path / "run", [0.5], method="=HYPERLINK(1)")
    assert fedpeft("report", tmp_path / "run", "-o", tmp_path / "page.html", "--csv").exit_code == 0
    with (tmp_path / "page-groups.csv").open() as file:
        assert [row["group"] for row in csv.DictReader(file)] == ["'=HYPERLINK(1)"]


def test_a_real_run_is_read(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    run = tmp_path / "run"
    assert fedpeft("run", tmp_path / "plan.toml", "--out", run, "--quiet").exit_code == 0
    out = tmp_path / "page.html"
    result = fedpeft("report", run, "-o", out, "--csv")
    assert (result.exit_code, result.stderr) == (0, "")
    summary = json.loads((run / "summary.json").read_text())
    with (tmp_path / "page-groups.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert float(line["accuracy, last"]) == summary["accuracy_last"]
    assert float(line["up, client and run"]) == summary["bytes_up"] / summary["clients"]
    assert float(line["up, client and round"]) == summary["bytes_up_per_client_round"]


def test_unfinished_runs_are_shown_as_such(tmp_path: Path) -> None:
    write_cell(tmp_path / "cells" / "half", [0.5], planned=4)
    begun = write_cell(tmp_path / "cells" / "begun", [], method="bias", planned=4)
    (begun / "rounds.jsonl").unlink()
    result = fedpeft("report", tmp_path / "cells", "-o", tmp_path / "page.html")
    assert (result.exit_code, result.stderr) == (0, "")
    words = " ".join(" ".join(Page((tmp_path / "page.html").read_text()).words).split())
    assert "2 runs are unfinished and in no mean" in words
    assert "1 of 4" in words and "0 of 4" in words


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("plan.toml", "rounds = ", "cannot be read"),
        (
            "plan.toml",
            "rounds = 'many'\nseed = 1",
            "is damaged: rounds: Input should be a valid integer",
        ),
        ("rounds.jsonl", "{}\n", "line 1 is damaged or out of order"),
        ("rounds.jsonl", '{"round": 1}\n', "line 1: clients: Field required"),
        ("summary.json", "[]", "it holds no table"),
        ("summary.json", '{"seconds": NaN}', "seconds: Input should be a finite number"),
        (
            "partition.json",
            '{"classes": ["x"], "histograms": {"a": [1, 2]}}',
            "not one count for each class",
        ),
        ("plan.toml", b"\xff", "cannot be read"),
    ],
)
def test_an_unreadable_run_is_named_and_the_rest_goes_on(
    tmp_path: Path, file: str, content: str | bytes, reason: str
) -> None:
    write_cell(tmp_path / "cells" / "good", [0.5], seed=1)
    bad = write_cell(tmp_path / "cells" / "bad", [0.5], seed=2)
    (bad / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = fedpeft("report", tmp_path / "cells", "-o", tmp_path / "page.html")
    assert result.exit_code == 0
    assert (
        len(result.stderr.splitlines()) == 1 and reason in result.stderr and "bad" in result.stderr
    )
    words = " ".join(Page((tmp_path / "page.html").read_text()).words)
    assert "Left out of this page" in words and "1 run in 1 group" in words
    alone = fedpeft("report", bad, "-o", tmp_path / "none.html")
    assert alone.exit_code == 2 and len(alone.stderr.splitlines()) == 1 and reason in alone.stderr
    assert not (tmp_path / "none.html").exists()


def test_a_report_of_nothing_fails(tmp_path: Path) -> None:
    empty = fedpeft("report", tmp_path, "-o", tmp_path / "page.html")
    assert (empty.exit_code, empty.stderr) == (
        2,
        f"error: there is no run to report below {tmp_path}\n",
    )
    missing = fedpeft("report", tmp_path / "nowhere", "-o", tmp_path / "page.html")
    assert missing.exit_code == 2 and f"{tmp_path / 'nowhere'} is no folder" in missing.stderr
    assert fedpeft("report").exit_code == 2
    run = write_cell(tmp_path / "run", [0.5])
    folder = fedpeft("report", run, "-o", tmp_path)
    assert (folder.exit_code, folder.stderr) == (
        2,
        f"error: {tmp_path} is a folder: give -o the name of a file\n",
    )


def test_the_same_run_counts_once(tmp_path: Path) -> None:
    write_cell(tmp_path / "a", [0.5], planned=2)
    write_cell(tmp_path / "b", [0.5, 0.7])
    write_cell(tmp_path / "c", [0.5, 0.7])
    result = fedpeft(
        "report", tmp_path / "a", tmp_path, tmp_path / "c", "-o", tmp_path / "page.html", "--csv"
    )
    assert (
        result.exit_code == 0
        and result.stderr.count("is left out: it has the plan and the seed of") == 2
    )
    with (tmp_path / "page-runs.csv").open() as file:
        assert [row["folder"] for row in csv.DictReader(file)] == [str(tmp_path / "b")]
