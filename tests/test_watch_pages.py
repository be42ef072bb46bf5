"""Pages of `fedpeft watch --serve`, over real sockets: what they show, and what they refuse."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from shutil import which
from urllib.parse import urlsplit

import pytest
from cells import line, summary, write_cell
from running import fedpeft

from fedpeft.errors import RunError
from fedpeft.watching.curves import HEIGHT, LEFT, RIGHT, WIDTH, draw_curve
from fedpeft.watching.html import POLICY, STYLE
from fedpeft.watching.serving import is_known_host, is_loopback, serving
from fedpeft.watching.showing import pages_of_runs

EVIL = "<script>alert('b')</script>"


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    with serving(pages_of_runs(folder), 0, "127.0.0.1") as address:
        yield address


def ask(
    address: str, path: str = "/", method: str = "GET", **headers: str
) -> tuple[HTTPResponse, str]:
    """A browser's question, and what it was told."""
    connection = HTTPConnection(urlsplit(address).netloc, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def text_of(page: str) -> str:
    """What a reader sees of a page, and that its tags are balanced."""
    seen: list[str] = []
    unclosed: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta",):
                unclosed.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert unclosed.pop() == tag

        def handle_startendtag(self, tag: str, attrs: object) -> None: ...

        def handle_data(self, data: str) -> None:
            if "style" not in unclosed:
                seen.append(data)

    Reader().feed(page)
    assert not unclosed
    return " ".join(" ".join(seen).split())


def test_a_page_of_a_run_that_grows(tmp_path: Path) -> None:
    run = write_cell(
        tmp_path / "run", [0.2, None, 0.3], planned=4, up=2048, failed="it is tired", epsilon=0.5
    )
    with pages(run) as address:
        answer, first = ask(address)
        seen = text_of(first)
        assert answer.status == 200 and 'http-equiv="refresh"' in first
        for words in (
            "round 3 of 4;",
            "accuracy 0.3000; best 0.3000",
            "bytes 10.0 KiB up, 60 B down (10,240 and 60)",
            "epsilon so far 1.5 at delta 1e-05, for one client",
            "answers 5 of 6 were counted",
            "Round 3 2 answered: a, b.",
            "b 3 2 4.0 KiB 30 B round 1: it is tired a 3 3 6.0 KiB 30 B",
            "2 not measured 2/2",
        ):
            assert words in seen, words
        with (run / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(line(4, 0.9, 2048, "no answer in 30 s", 0.5)) + "\n")
        seen = text_of(ask(address)[1])
        assert "accuracy 0.9000" in seen and "epsilon so far 2 at" in seen
        assert "1 answered: a. 1 not counted: client why b no answer in 30 s" in seen
        (run / "summary.json").write_text(json.dumps(summary(1, None)))
        last = ask(address)[1]
        assert "finished in 2.0 s" in text_of(last) and "refresh" not in last


def test_several_runs_have_a_line_and_a_page_each(tmp_path: Path) -> None:
    write_cell(tmp_path / "a b & c", [0.5])
    write_cell(tmp_path / "under" / "two", [0.5], planned=2)
    (write_cell(tmp_path / "worn", [0.5]) / "summary.json").write_text("{")
    with pages(tmp_path) as address:
        index = ask(address)[1]
        links = re.findall(r'href="([^"]+)"', index)
        assert links == ["/run/a%20b%20%26%20c", "/run/under/two", "/run/worn"]
        assert "2 of 3 are finished." in text_of(index)
        assert "worn cannot be read:" in text_of(index)
        assert [ask(address, link)[0].status for link in links] == [200, 200, 200]
        assert "all runs" in text_of(ask(address, links[1])[1])
        for path in ("/run/../a", "/run/", "/etc/passwd", "/run/%2e%2e/plan.toml", "//x", "/%00"):
            assert ask(address, path)[0].status == 404, path


def test_what_runs_say_is_text_and_no_page(tmp_path: Path) -> None:
    run = write_cell(tmp_path / "run", [0.5], planned=2, failed=EVIL, plan={"name": EVIL})
    told = json.loads((run / "rounds.jsonl").read_text())
    told |= {"clients": {EVIL: told["clients"]["b"]}, "note": EVIL, "held_out": {EVIL: 0.5}}
    (run / "rounds.jsonl").write_text(json.dumps(told) + "\n")
    with pages(run) as address:
        page = ask(address)[1]
    assert "<script" not in page.lower() and text_of(page).count("alert") >= 5


def test_nothing_is_loaded_and_nothing_can_be_written(tmp_path: Path) -> None:
    run = write_cell(tmp_path / "run", [0.5, 0.6], planned=3)
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    with pages(run) as address:
        answer, page = ask(address)
        assert answer.headers["Content-Security-Policy"] == POLICY
        assert POLICY.startswith("default-src 'none'; style-src 'sha256-") and STYLE in page
        assert "script" not in POLICY and "unsafe" not in POLICY
        assert not re.search(r"https?:|src=|style=|url\(|@import", page)
        assert answer.headers["Server"] == "fedpeft"
        assert "Access-Control-Allow-Origin" not in answer.headers
        head, nothing = ask(address, method="HEAD")
        assert head.status == 200 and nothing == ""
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            refused = ask(address, method=method)[0]
            assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


def test_a_name_that_leads_here_from_elsewhere_is_refused(tmp_path: Path) -> None:
    run = write_cell(tmp_path / "run", [0.5])
    with pages(run) as address:
        port = urlsplit(address).port
        for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1@evil.example:{port}", ""):
            answer, text = ask(address, Host=host)
            assert answer.status == 421 and "0.5" not in text, host
        assert ask(address, Host=f"localhost:{port}")[0].status == 200


@pytest.mark.parametrize(
    ("host", "address", "known"),
    [
        ("127.0.0.1:80", "127.0.0.1", True),
        ("[::1]:80", "::1", True),
        ("LOCALHOST", "127.0.0.1", True),
        ("localhost.evil.example", "127.0.0.1", False),
        ("10.0.0.3", "127.0.0.1", False),
        ("10.0.0.3:80", "0.0.0.0", True),
        ("evil.example", "0.0.0.0", False),
        ("[::1", "::1", False),
    ],
)
def test_hosts_that_a_browser_may_name(host: str, address: str, known: bool) -> None:
    assert is_known_host(host, address) is known


def test_only_this_machine_is_served_unless_the_user_says_so(tmp_path: Path) -> None:
    run = write_cell(tmp_path / "run", [0.5])
    assert [is_loopback(one) for one in ("127.9.9.9", "::1", "0.0.0.0", "example.org")] == [
        True,
        True,
        False,
        False,
    ]
    refused = fedpeft("watch", run, "--serve", "--address", "0.0.0.0")
    assert refused.exit_code == 2 and "can be reached from other machines" in refused.stderr
    both = fedpeft("watch", run, "--serve", "0", "--once")
    assert both.exit_code == 2 and "give one of them" in both.stderr
    with serving(pages_of_runs(run), 0, "0.0.0.0", beyond=True) as address:
        port = urlsplit(address).port
        assert ask(f"http://127.0.0.1:{port}")[0].status == 200
        with (
            pytest.raises(RunError, match="--serve 0 takes a free one"),
            serving(pages_of_runs(run), port or 0, "0.0.0.0", beyond=True),
        ):
            pass


def test_a_run_that_is_gone_is_told_and_the_page_comes_back(tmp_path: Path) -> None:
    run = write_cell(tmp_path / "run", [0.5])
    with pages(run) as address:
        run.rename(tmp_path / "away")
        answer, text = ask(address)
        assert answer.status == 503 and "there is no run at or below" in text
        (tmp_path / "away").rename(run)
        assert ask(address)[0].status == 200


def test_a_curve_by_hand() -> None:
    drawn = draw_curve("accuracy", {1: 0.0, 2: 1.0, 3: 0.5}, planned=5)
    inside = (WIDTH - LEFT - RIGHT) / 4
    assert (
        f'points="{LEFT:.1f},156.0 {LEFT + inside:.1f},10.0 {LEFT + 2 * inside:.1f},83.0"' in drawn
    )
    assert HEIGHT == 180 and "accuracy: 0.5 after round 3" in drawn
    level = draw_curve("loss", {1: 2.0}, planned=1)
    assert 'points="64.0,83.0"' in level and ">1</text>" in level and ">3</text>" in level
    many = draw_curve("loss", {k: float(k) for k in range(1, 5001)}, planned=5000)
    points = re.search(r'points="([^"]*)"', many)
    assert (
        points and len(points[1].split()) <= 402 and points[1].endswith(f"{WIDTH - RIGHT:.1f},10.0")
    )


@pytest.mark.slow  # a process imports all that there is
def test_the_command_tells_its_address_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    run = write_cell(tmp_path / "run", [0.5])
    command = [sys.executable, "-m", "fedpeft", "watch", str(run), "--serve"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout is not None
            address, rest = process.stdout.readline().split(" ", 1)
            assert rest == "until Ctrl-C\n" and "finished in" in text_of(ask(address)[1])
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


@pytest.mark.slow
def test_a_browser_shows_it_as_the_policy_lets_it(tmp_path: Path) -> None:
    """The style sheet applies, and nothing is blocked or asked of another address."""
    api = pytest.importorskip("playwright.sync_api")
    found = which("chromium") or which("chromium-browser") or which("google-chrome")
    if found is None:
        pytest.skip("no Chromium is installed")
    run = write_cell(tmp_path / "run", [0.2, 0.4, 0.5], planned=4, failed=EVIL)
    with pages(run) as address, api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        tab = browser.new_page()
        told: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda message: told.append(message.text))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        stroke = tab.locator("polyline").first.evaluate("line => getComputedStyle(line).stroke")
        with (run / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(line(4, 0.7, 1000, None, None)) + "\n")
        tab.get_by_text("accuracy: 0.7 after round 4").wait_for(timeout=20_000)
        tab.set_viewport_size({"width": 390, "height": 900})
        page_is = tab.evaluate("document.documentElement.scrollWidth")
        lines = tab.locator("thead th").evaluate_all("all => all.map(x => x.clientHeight)")
        browser.close()
    assert page_is == 390 and max(lines) < 60, "no word stands a letter a line on a phone"
    assert stroke == "rgb(37, 99, 168)" and told == []
    assert set(asked) == {address}
