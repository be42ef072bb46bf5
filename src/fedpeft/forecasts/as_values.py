"""A forecast as plain values, for programs."""

from typing import Any

from fedpeft.forecasts.advice import warn
from fedpeft.forecasts.forecast import Forecast
from fedpeft.forecasts.links import Link
from fedpeft.forecasts.timing import Pace


def forecast_values(
    found: Forecast, link: Link | None = None, pace: Pace | None = None
) -> dict[str, Any]:
    """The whole forecast in bytes, seconds and floating-point operations; what was not asked for is
    None."""
    plan = found.plan
    return {
        "name": plan.name,
        "fingerprint": plan.fingerprint,
        "rounds": plan.rounds,
        "clients": found.clients,
        "cohort": found.cohort,
        **_traffic(found),
        "link": None if link is None else _link(found, link),
        "steps": found.training.steps,
        "flop_client_round": found.training.client_flop or None,
        "flop_total": found.training.round_flop * plan.rounds or None,
        "time": None if pace is None else _time(found, pace),
        "memory": {who: {"total": one.total, **one.parts} for who, one in found.memory.items()},
        "memory_free": found.free,
        "privacy": found.privacy,
        "base": {
            "name": found.base.name,
            "parameters": found.base.parameters,
            "trained": found.base.trained,
            "disk": found.base.disk,
            "here": found.base.here,
        },
        "columns": list(found.columns),
        "notes": list(found.notes),
        "warnings": [{"what": one.what, "remedy": one.remedy} for one in warn(found, link)],
    }


def _traffic(found: Forecast) -> dict[str, Any]:
    traffic = found.traffic
    values: dict[str, Any] = {}
    for k, way in enumerate(("down", "up")):
        values[f"bytes_{way}"] = round(traffic.total(k))
        values[f"bytes_{way}_per_client_round"] = round(traffic.mean(k), 1)
        values[f"bytes_{way}_sizes"] = traffic.each(k)
    return {
        **values,
        "bytes_up_headers": traffic.up_headers,
        "rounds_rehearsed": len(traffic.rounds),
        "varies": dict(traffic.varies),
    }


def _link(found: Forecast, link: Link) -> dict[str, float]:
    traffic = found.traffic
    return {
        "bits_per_second": link.rate,
        "seconds_client_round": link.seconds(traffic.mean(0) + traffic.mean(1)),
        "seconds_server": link.seconds(traffic.total(0) + traffic.total(1)),
    }


def _time(found: Forecast, pace: Pace) -> dict[str, Any]:
    return {
        "seconds": pace.total(found.plan),
        "rounds": pace.rounds(found.plan),
        "opening": pace.opening,
        "round": pace.round,
        "evaluation": pace.evaluation,
        "engine": pace.engine,
        "source": pace.source,
    }
