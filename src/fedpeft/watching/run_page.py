"""Pages of runs: one run at length, or several with a line and a link each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from fedpeft.core.units import duration, size
from fedpeft.report.reading import KeptRun
from fedpeft.report.schema import KeptRound
from fedpeft.watching.curves import draw_curve
from fedpeft.watching.html import document, draw_table, heading, paragraph, term_list
from fedpeft.watching.views import RunView, best, budget, curve, missing_answers, state, traffic

RUNS = "/run/"
"""The beginning of a run's address, where there are several."""
CURVES, CLIENTS, ROUNDS = 8, 200, 20
"""The most that a page shows of each; of more it says how many are left out."""


def show_runs(seen: Mapping[str, RunView], path: str) -> str | None:
    """The page at a path, or None where there is none.

    Args:
      seen: runs by their path from the folder that is watched; "" for that folder itself.
      path: as the browser asks for it, decoded.
    """
    if path == "/":
        return _one(seen[""], "") if list(seen) == [""] else _several(seen)
    name = path.removeprefix(RUNS)
    if not path.startswith(RUNS) or name not in seen:
        return None
    return _one(seen[name], name)


def _several(seen: Mapping[str, RunView]) -> str:
    over = sum(view.over for view in seen.values())
    body = [heading("Runs", 1), paragraph(f"{over} of {len(seen)} are finished.")]
    rows = []
    for name, view in seen.items():
        link = f'<a href="{RUNS}{quote(name)}">{escape(name)}</a>'
        cells = [escape(text) for text in _line(view)]
        rows.append(f"<tr><td>{link}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{word}</th>" for word in ("run", "round", "last", "up", "failed", "state"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return document("runs", [*body, f'<div class="wide">{table}</div>'], over < len(seen))


def _line(view: RunView) -> list[str]:
    """A run in the list of all, without its name."""
    cell = view.cell
    if cell is None:
        return ["", "", "", "", f"cannot be read: {view.problem}"]
    name, values = curve(cell)
    return [
        f"{len(cell.rounds)}/{cell.planned}",
        f"{name} {values[-1]:.4f}" if values else "",
        size(traffic(cell)[0]),
        str(sum(1 for _ in missing_answers(cell))),
        state(view),
    ]


def _one(view: RunView, name: str) -> str:
    cell = view.cell
    back = ['<p><a href="/">all runs</a></p>'] if name else []
    if cell is None:
        body = [*back, heading(name or "run", 1), paragraph(view.problem, "bad")]
        return document(name or "run", body, True)
    title = str(cell.plan.get("name", "run"))
    done, planned = len(cell.rounds), cell.planned
    body = [
        *back,
        heading(title, 1),
        paragraph(name or cell.path.resolve().name, "faint"),
        f'<progress value="{done}" max="{max(1, planned, done)}"></progress>',
        term_list(_facts(view, cell)),
        *_curves(cell),
        *_last_round(cell),
        *_clients(cell),
        *_rounds(cell),
    ]
    return document(f"{done}/{planned} {title}", body, not view.over)


def _facts(view: RunView, cell: KeptRun) -> Iterator[tuple[str, str]]:
    yield "round", f"{len(cell.rounds)} of {cell.planned}; {state(view)}"
    name, values = curve(cell)
    if values:
        yield name, f"{values[-1]:.4f}; best {best(name, values):.4f}"
    up, down = traffic(cell)
    yield "bytes", f"{size(up)} up, {size(down)} down ({up:,} and {down:,})"
    private = [r.privacy for r in cell.rounds if r.privacy]
    if spent := budget(cell):
        yield "epsilon so far", f"{spent}, for one {private[-1].unit}"
    elif private:
        yield "epsilon so far", f"not bounded: the noise gives no {private[-1].unit} a guarantee"
    asked = sum(len(r.clients) for r in cell.rounds)
    missing = sum(1 for _ in missing_answers(cell))
    yield "answers", f"{asked - missing} of {asked} were counted"


def _curves(cell: KeptRun) -> Iterator[str]:
    names = dict.fromkeys(name for r in cell.rounds for name in r.held_out or {})
    found = {f"held-out {name}": cell.measured(name) for name in names}
    found["loss in training"] = _by_round(cell, "loss")
    found["epsilon"] = _epsilons(cell)
    figures = [draw_curve(name, told, cell.planned) for name, told in found.items() if told]
    if figures:
        yield f'<div class="curves">{"".join(figures[:CURVES])}</div>'
    if len(figures) > CURVES:
        yield paragraph(f"{len(figures) - CURVES} further metrics are in rounds.jsonl.", "faint")


def _epsilons(cell: KeptRun) -> dict[int, float]:
    """The ε so far, by round, where there is one."""
    told = ((r.round, r.privacy.epsilon) for r in cell.rounds if r.privacy)
    return {at: value for at, value in told if value is not None}


def _by_round(cell: KeptRun, name: str) -> dict[int, float]:
    """What clients told of their training, where it is finite."""
    told = ((r.round, r.metrics.get(name)) for r in cell.rounds)
    return {at: value for at, value in told if value is not None}


def _last_round(cell: KeptRun) -> Iterator[str]:
    """Who answered in the last round that is done, and who did not and why."""
    if not cell.rounds:
        return
    last = cell.rounds[-1]
    came = [name for name, told in last.clients.items() if told.failed is None]
    yield heading(f"Round {last.round}")
    if last.note:
        yield paragraph(last.note, "bad")
    more = f" and {len(came) - CLIENTS} more" if len(came) > CLIENTS else ""
    yield paragraph(f"{len(came)} answered: {', '.join(came[:CLIENTS]) or 'nobody'}{more}.")
    missing = [(name, told.failed or "") for name, told in last.clients.items() if told.failed]
    if missing:
        yield paragraph(f"{len(missing)} not counted:", "bad")
        yield draw_table(("client", "why"), missing[:CLIENTS], ())
        yield from _left_out(len(missing), "clients")


@dataclass
class Tally:
    """What came of one client over all rounds so far."""

    asked: int = 0
    failed: int = 0
    up: int = 0
    down: int = 0
    why: str = ""

    def cells(self) -> list[str]:
        counted = self.asked - self.failed
        return [str(self.asked), str(counted), size(self.up), size(self.down), self.why]


def _clients(cell: KeptRun) -> Iterator[str]:
    """All clients so far, those first whose answers were missing most often."""
    tallies: dict[str, Tally] = {}
    for r in cell.rounds:
        for name, told in r.clients.items():
            tally = tallies.setdefault(name, Tally())
            tally.asked += 1
            tally.up += told.up
            tally.down += told.down
            if told.failed is not None:
                tally.failed += 1
                tally.why = f"round {r.round}: {told.failed}"
    if not tallies:
        return
    order = sorted(tallies, key=lambda name: (-tallies[name].failed, name))
    yield heading("Clients so far")
    rows = [[name, *tallies[name].cells()] for name in order[:CLIENTS]]
    words = ("client", "asked", "counted", "up", "down", "last failure")
    yield draw_table(words, rows, (1, 2, 3, 4))
    yield from _left_out(len(order), "clients")


def _rounds(cell: KeptRun) -> Iterator[str]:
    if not cell.rounds:
        return
    yield heading("Rounds")
    shown = [_round(r) for r in reversed(cell.rounds[-ROUNDS:])]
    yield draw_table(("round", "held out", "counted", "up", "down", "time"), shown, (0, 2, 3, 4, 5))
    if len(cell.rounds) > ROUNDS:
        yield paragraph(f"{len(cell.rounds) - ROUNDS} earlier rounds are in rounds.jsonl.", "faint")


def _round(r: KeptRound) -> list[str]:
    measured = [f"{name} {x:.4f}" for name, x in (r.held_out or {}).items() if x is not None]
    failed = sum(told.failed is not None for told in r.clients.values())
    return [
        str(r.round),
        ", ".join(measured) or "not measured",
        f"{len(r.clients) - failed}/{len(r.clients)}",
        size(r.bytes_up),
        size(r.bytes_down),
        duration(r.seconds),
    ]


def _left_out(count: int, what: str) -> Iterator[str]:
    if count > CLIENTS:
        yield paragraph(f"{count - CLIENTS} further {what} are not shown.", "faint")
