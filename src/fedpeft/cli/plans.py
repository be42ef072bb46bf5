"""`fedpeft show` and `fedpeft plan`: a plan with its defaults, and what it will cost."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from fedpeft.cli.options import (
    AllowCode,
    AsJson,
    Debug,
    PlanFile,
    Settings,
    allowed_code,
    resolve,
)
from fedpeft.errors import say_count

if TYPE_CHECKING:
    from fedpeft.forecasts.forecast import Forecast
    from fedpeft.forecasts.links import Link
    from fedpeft.forecasts.timing import Pace

EXAMPLES = """\
  fedpeft plan                                       the costs of `fedpeft run`
  fedpeft plan plan.toml --link 10mbit --measure     time on a link and on this machine too
  fedpeft plan plan.toml --set method=full --json    what another method would cost
  fedpeft plan plan.toml --examples 200              without the owners' examples
"""
SHOW_EXAMPLES = """\
  fedpeft show                                    the plan of `fedpeft run`
  fedpeft show plan.toml --set method=prompt      what another method's settings are
  fedpeft show > mine.toml                        a plan to begin with
"""


def show(plan: PlanFile = None, settings: Settings = None, debug: Debug = False) -> None:
    """Show a plan with all its defaults.

    What is printed reads back to the same plan. Without PLAN.toml: the plan of `fedpeft run`.
    """
    text = resolve(plan, settings).toml()
    if not sys.stdout.isatty():
        typer.echo(text, nl=False)
        return
    from rich.console import Console
    from rich.syntax import Syntax

    Console().print(Syntax(text, "toml", background_color="default"))


def plan_ahead(
    plan: PlanFile = None,
    settings: Settings = None,
    link: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="Each client's link, e.g. 500kbit, 10mbit, 1gbit."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Train for some ten seconds, to tell the time on this machine."
        ),
    ] = False,
    examples: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Plan without the examples: each client is taken to have N."
        ),
    ] = None,
    allow_code: AllowCode = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Tell what a plan costs before anything runs.

    It tells bytes, time on a link, operations, memory, epsilon, what each owner must have, and what
    will not fit. The conversation is rehearsed with the real codecs and the base as shapes alone,
    so that a base's config.json is enough. Without PLAN.toml: the plan of `fedpeft run`.
    """
    chosen = resolve(plan, settings, code=allowed_code(allow_code))
    from fedpeft.forecasts.advice import warn
    from fedpeft.forecasts.forecast import forecast
    from fedpeft.forecasts.links import read_link
    from fedpeft.forecasts.timing import pace_if_any

    rate = read_link(link) if link else None
    found = forecast(chosen, examples)
    pace, why = pace_if_any(found.plan) if measure else (None, "")
    if as_json:
        from fedpeft.forecasts.as_values import forecast_values

        typer.echo(json.dumps(forecast_values(found, rate, pace), indent=2))
    else:
        lines = list(_lines(found, rate, pace))
        width = 2 + max(len(label) for label, _ in lines)
        for label, text in lines:
            typer.echo(f"{label:<{width}}{text}")
    for note in [*found.notes, *([f"the time was not measured: {why}"] if why else [])]:
        typer.echo(f"note: {note}", err=as_json)
    for one in warn(found, rate):
        typer.secho(f"warning: {one.what}: {one.remedy}", fg="yellow", err=as_json)


def _lines(
    found: "Forecast", link: "Link | None", pace: "Pace | None"
) -> Iterator[tuple[str, str]]:
    plan = found.plan
    clients = say_count(found.clients, "clients")
    yield "plan", f"{plan.name}: {say_count(plan.rounds, 'rounds')}, {found.cohort} of {clients}"
    yield from _traffic(found, link)
    yield from _work(found, pace)
    yield from _memory(found)
    yield from _privacy(found)
    yield from _owners(found)


def _traffic(found: "Forecast", link: "Link | None") -> Iterator[tuple[str, str]]:
    from fedpeft.core.units import duration, size

    traffic = found.traffic
    for k, way in enumerate(("down", "up")):
        about = "about " if way in traffic.varies else ""
        yield f"{way}, client and round", about + _sizes(traffic.each(k))
    for k, way in enumerate(("down", "up")):
        about = "about " if way in traffic.varies or not traffic.whole else ""
        yield f"{way}, in all", f"{about}{traffic.total(k):,.0f} bytes ({size(traffic.total(k))})"
    if link is not None:
        each = link.seconds(traffic.mean(0) + traffic.mean(1))
        yield "link of a client", f"{duration(each)} for each round that it takes part in"
        whole = link.seconds(traffic.total(0) + traffic.total(1))
        yield "link of the server", f"{duration(whole)} in all, if it is as fast as a client's"


def _sizes(sizes: list[int]) -> str:
    if len(sizes) == 1:
        return f"{sizes[0]:,} bytes"
    return f"{sizes[0]:,} to {sizes[-1]:,} bytes"


def _work(found: "Forecast", pace: "Pace | None") -> Iterator[tuple[str, str]]:
    from fedpeft.core.units import duration

    training, plan = found.training, found.plan
    yield "steps", f"{training.steps} of a usual client in a round"
    if not training.error:
        each, whole = training.client_flop, training.round_flop * plan.rounds
        yield "operations", f"{each:.3g} FLOP of a usual client in a round, {whole:.3g} in all"
    if pace is not None:
        round_ = f"{duration(pace.round)} for a round ({pace.engine}; {pace.source})"
        yield "time here", f"about {duration(pace.total(plan))}; {round_}"


def _memory(found: "Forecast") -> Iterator[tuple[str, str]]:
    from fedpeft.core.units import size

    for who, memory in found.memory.items():
        largest = sorted(memory.parts.items(), key=lambda part: -part[1])[:3]
        parts = ", ".join(f"{name} {size(count)}" for name, count in largest)
        yield f"memory, {who}", f"about {size(memory.total)} ({parts}, ...)"
    yield "memory, free here", size(found.free)


def _privacy(found: "Forecast") -> Iterator[tuple[str, str]]:
    from fedpeft.core.units import say_epsilon

    spent = found.privacy
    if spent is None:
        return
    if spent["epsilon"] is None:
        yield "epsilon", f"none: this noise gives no {spent['unit']} a guarantee"
        return
    times = say_count(found.plan.rounds, "rounds") if found.plan.rounds else "one message"
    yield (
        "epsilon",
        (
            f"{say_epsilon(spent['epsilon'])} at delta = {spent['delta']:g} for one "
            f"{spent['unit']} after {times} (noise_multiplier = "
            f"{found.plan.private_part.noise_multiplier:.4g}, {spent['accountant']})"
        ),
    )


def _owners(found: "Forecast") -> Iterator[tuple[str, str]]:
    from fedpeft.core.units import size

    base = found.base
    where = "on disk" if base.here else "as float32; its weights are not here"
    share = base.trained / base.parameters
    yield "base", f"{base.name}: {base.parameters:,} numbers, {size(base.disk)} {where}"
    yield "trained", f"{base.trained:,} numbers ({share:.2%})"
    columns = ", ".join(found.columns) or "as the plan's data read them"
    yield "each owner needs", f"the base, and examples with the columns {columns}"
