"""A diagnosis in words."""

from collections.abc import Mapping
from typing import Any


def answer(found: Mapping[str, Any], tolerance: float) -> dict[str, str]:
    """`answer`: yes, no, unclear or nothing learned; and why, in sentences.

    Decided by what one round loses of the held-out gain, whose 95 % interval is over the held-out
    examples and paired.
    Smoothness and the bounds do not decide. The diagnosis shows them, since the paper argues with
    them.
    """
    held = found["held_out"]
    allowed = tolerance * held["gain"]
    if held["gain"] <= 0:
        short = "nothing learned"
    elif held["gap_high"] <= allowed:
        short = "yes"
    else:
        short = "no" if held["gap_low"] > allowed else "unclear"
    return {
        "answer": short,
        "words": " ".join([_verdict(short, found, tolerance), *_reasons(found, tolerance)]),
    }


def _verdict(short: str, found: Mapping[str, Any], tolerance: float) -> str:
    held, rounds = found["held_out"], found["rounds"]
    metric, last = held["metric"], held["rounds"][-1]
    if short == "nothing learned":
        return (
            f"{rounds} rounds leave the {metric} no better than it was: "
            "there is nothing that one round could keep."
        )
    reached = (
        f"one round of the same work reaches {metric} {held['one']:.4g}, {rounds} rounds {last:.4g}"
    )
    words = {
        "yes": f"One round will do: {reached}",
        "no": f"One round will not do: {reached}",
        "unclear": f"These {held['examples']} held-out examples cannot tell: {reached}",
    }[short]
    low, high, allowed = held["gap_low"], held["gap_high"], tolerance * held["gain"]
    lost = f"it loses {held['gap']:.4f}, 95 % interval {low:.4f} to {high:.4f}"
    return f"{words}; {lost}, and {tolerance:.0%} of the gain is {allowed:.4f}."


def _reasons(found: Mapping[str, Any], tolerance: float) -> list[str]:
    conflict, moved, apart = (
        found["conflict"],
        found["update"]["rounds"],
        found["distance"]["merged"]["whole"],
    )
    share = apart / moved["whole"] if moved["whole"] else 0.0
    reasons = [
        f"The two models are {share:.0%} of the way apart that training moves one.",
        f"Clients' updates of the first round differ in sign in {conflict['first_round']:.0%} of "
        f"the entries, where tossed coins would in {conflict['coins']:.0%}.",
    ]
    epochs = found["held_out"]["epochs_to_target"]
    if epochs is not None:
        reasons.append(f"{1 - tolerance:.0%} of the gain is there after {epochs:g} local epochs.")
    if found["distance"]["beyond"]:
        reasons.append(
            "The bounds are for plain SGD and do not hold here: "
            f"{', '.join(found['distance']['beyond'])}."
        )
    return reasons
