"""What `fedpeft evaluate --benchmark` asks, and how it shows the answers."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fedpeft.registry import Code
    from fedpeft.results.questions import Asked

WIDTH = 100


def read_options(
    name: str | None, shots: int | None, limit: int | None, mmlu: Path | None
) -> "Asked | None":
    """What the options ask; None where there is no --benchmark.

    Raises:
      UsageError: an option that says nothing without another.
    """
    from fedpeft.results.questions import Asked

    if name is None:
        if (shots, limit, mmlu) != (None, None, None):
            raise click.UsageError("--shots, --limit and --mmlu belong to --benchmark")
        return None
    return Asked(name, shots, limit, mmlu)


def measure_benchmark(run: Path, questions: "Asked", device: str, code: "Code") -> dict[str, Any]:
    """The record of both models, with a bar on standard error meanwhile."""
    from rich.console import Console
    from rich.progress import Progress

    from fedpeft.results.benchmark import benchmark

    console = Console(file=sys.stderr)  # this one, whatever is put in its place meanwhile
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"asking {questions.name}", total=None)
        return benchmark(
            run,
            questions,
            device,
            lambda done, total: progress.update(bar, completed=done, total=total),
            code,
        )


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A record in words and numbers; shares in percent, differences in points."""
    count, out, chance = found["questions"], found["left_out"], found["chance"]
    first = f", the first {found['limit']} of each task" if found["limit"] else ""
    asked = f"{count - out:,} of {count:,} questions"
    chat = f", as messages by the template {name!r}" if (name := found["template"]) else ""
    yield f"{found['benchmark']}, {found['shots']} shots{first}{chat}: {asked}"
    yield f"  {'':<10}{'base, not tuned':<26}{'tuned':<26}difference, question by question"
    for name, each in found["metrics"].items():
        base, tuned = (_percent(each[kind]) for kind in ("base", "tuned"))
        yield f"  {name:<10}{base:<26}{tuned:<26}{_points(each['difference'])}"
    yield f"  {'chance':<10}{chance:.1%}; in brackets 95 % intervals"
    for name, each in found["metrics"].items():
        yield f"  {name}: {_judge(each, chance)}"
    if out:
        names = ", ".join(
            f"{task} {one['left_out']:,} of {one['questions']:,}"
            for task, one in sorted(found["tasks"].items(), key=lambda pair: -pair[1]["left_out"])
            if one["left_out"]
        )
        yield from wrap(
            f"left out, as longer than the model's {found['context']} tokens: {out:,} questions, "
            f"of {names}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
        )


def _percent(one: Mapping[str, float]) -> str:
    return f"{one['value']:.1%} ({100 * one['low']:.1f} to {100 * one['high']:.1f})"


def _points(one: Mapping[str, float]) -> str:
    return f"{100 * one['value']:+.1f} points ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})"


def _judge(each: Mapping[str, Mapping[str, float]], chance: float) -> str:
    """What may be read from the numbers, and what may not."""
    above = [kind for kind in ("base", "tuned") if each[kind]["low"] > chance]
    level = f"above chance is {' and '.join(above)}" if above else "neither model is above chance"
    apart = each["difference"]
    if apart["low"] <= 0 <= apart["high"]:
        return f"{level}; the difference may be chance"
    return f"{level}; tuning {'raised' if apart['value'] > 0 else 'lowered'} it"
