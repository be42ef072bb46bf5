"""What a finished run comes to, in one table of plain values."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fedpeft.engines.auto import Choice
from fedpeft.errors import FedpeftError, reason_of
from fedpeft.evaluation.measure import FullPayloads, full_payloads
from fedpeft.registry import describe
from fedpeft.rounds.site import Site
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.environment import check_whole_fits, environment
from fedpeft.runs.folder import RunFolder, read_json, read_rounds, write_json
from fedpeft.runs.measured import measure_clients, measure_start
from fedpeft.runs.selection import Best

UNFINISHED = "it was not finished"
"""Why a summary has no comparison with full fine-tuning, while that is still measured."""


def summarize(
    folder: RunFolder, site: Site, choice: Choice | None = None, alone: str = ""
) -> dict[str, Any]:
    """Add up the rounds, compare with full fine-tuning, and write summary.json.

    `choice` is what "auto" came to, `alone` why "cohort" trained clients one after another, if it
    did.

    It is written without the comparison first: a model too large for this machine must not cost the
      rest.
    """
    plan = site.plan
    peak = peak_rss()  # before a whole model is built for the comparison
    rounds = read_rounds(folder)
    saved = load_checkpoint(folder.checkpoint, plan)
    summary = {
        "schema": plan.schema,
        "name": plan.name,
        "method": describe("method", plan.method)["name"],
        "seed": plan.seed,
        # A plan of no rounds has one line too, of what its owners measured.
        "rounds": min(len(rounds), plan.rounds),
        "clients": len(site.data.clients),
        "cohort": plan.cohort,
        **_accuracy(rounds),
        "start": measure_start(folder, site, rounds),
        **measure_clients(folder, site, saved),
        **_by_owner(rounds),
        **_selected(site, rounds),
        "privacy": rounds[-1].get("privacy") if rounds else None,
        "trainable_params": sum(x.numel() for x in site.params().values()),
        **_traffic(rounds),
        **_against_full(rounds, None),
        "full_not_measured": UNFINISHED,
        "seconds": round(sum(r["seconds"] for r in rounds), 3),
        "peak_rss_bytes": peak,
        "partition": (read_json(folder.partition) or {}).get("fingerprint"),
        "features": site.kept.note,
        "engine": choice.engine if choice else plan.engine,
        "engine_reason": choice.reason if choice else "named in the plan",
        "one_after_another": alone or None,
        **environment(plan, site.device),
    }
    write_json(folder.summary, summary)
    try:
        check_whole_fits(site.model)
        measured = _against_full(rounds, full_payloads(plan, site.classes))
        summary |= {**measured, "full_not_measured": None}
    except (FedpeftError, ArithmeticError, ValueError, RuntimeError, OSError, MemoryError) as error:
        summary["full_not_measured"] = reason_of(error)
    write_json(folder.summary, summary)
    return summary


def _by_owner(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What owners measured last; nothing where they were never asked."""
    told = [r["reports"]["owners"] for r in rounds if "owners" in (r.get("reports") or {})]
    return {"owners": told[-1]} if told else {}


def _selected(site: Site, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Which round was kept as the best, and why the run ended early, if it did."""
    plan = site.plan
    if not plan.select:
        return {}
    best = Best.of(plan, rounds)
    early = best.exhausted and len(rounds) < plan.rounds
    return {
        "selected": {"metric": best.metric, "round": best.round, "value": best.value},
        "ended_early": best.why if early else None,
    }


def _accuracy(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    measured = [(r["held_out"].get("accuracy"), r["round"]) for r in rounds if r["held_out"]]
    known = [(accuracy, at) for accuracy, at in measured if accuracy is not None]
    # Of equals the first round is the best.
    best = max(known, key=lambda pair: (pair[0], -pair[1]), default=(None, None))
    last = measured[-1][0] if measured else None
    metrics = next((r["held_out"] for r in reversed(rounds) if r["held_out"]), None)
    return {
        "accuracy_last": last,
        "accuracy_best": best[0],
        "best_round": best[1],
        "held_out_last": metrics,
    }


def _traffic(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    up, down = sum(r["bytes_up"] for r in rounds), sum(r["bytes_down"] for r in rounds)
    asked, came = _messages(rounds)
    failures = [
        {"round": r["round"], "client": client, "reason": what["failed"]}
        for r in rounds
        for client, what in r["clients"].items()
        if "failed" in what
    ]
    return {
        "asked": asked,
        "failed": len(failures),
        "first_failure": failures[0] if failures else None,
        "rounds_without_change": sum(bool(r["note"]) for r in rounds),
        "bytes_up": up,
        "bytes_down": down,
        "bytes_up_headers": sum(r["up_headers"] for r in rounds),
        "bytes_up_per_client_round": round(up / came, 1) if came else None,
        "bytes_down_per_client_round": round(down / asked, 1) if asked else None,
    }


def _messages(rounds: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    clients = [client for r in rounds for client in r["clients"].values()]
    return len(clients), sum(client["up"] > 0 for client in clients)


def _against_full(rounds: Sequence[Mapping[str, Any]], full: FullPayloads | None) -> dict[str, Any]:
    if full is None:
        ways = (
            f"full_bytes_{way}{each}"
            for each in ("_per_client_round", "")
            for way in ("up", "down")
        )
        return dict.fromkeys(["full_params", *ways])
    asked, came = _messages(rounds)
    return {
        "full_params": full.params,
        "full_bytes_up_per_client_round": full.up,
        "full_bytes_down_per_client_round": full.down,
        "full_bytes_up": full.up * came,
        "full_bytes_down": full.down * asked,
    }


def peak_rss() -> int | None:
    """The most memory that this process or the largest of its workers had resident, in bytes.

    None where the system does not tell. Workers count once they have ended.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    # macOS counts bytes here, and Linux units of 1,024 of them.
    return peak if sys.platform == "darwin" else peak * 1024
