"""The tables of docs/results/bytes.md: what each codec costs in accuracy, and spares in bytes."""

from statistics import fmean

from tools.claims.rows import (
    RESULTS,
    Row,
    difference,
    find_row,
    lines,
    read_row,
    results_of,
    signed,
    spread,
)

DIGITS, PHOTOGRAPHS = "bytes-codecs-small", "bytes-codecs-vit-tiny"
LARGER = {"ten-thousandth-vit-tiny": "ViT-Tiny", "ten-thousandth-minilm": "MiniLM"}
WAYS = {"lora-dense": "dense", "lora-top-10-signs-error-feedback": "top 10 %, signs"}
CODECS = {
    "float16": "float16",
    "int8": "int8",
    "int8-deflated": "int8, deflated",
    "ternary": "ternary",
    "sign": "sign",
    "top-10": "top 10 %",
    "top-10-float16": "top 10 %, float16",
    "top-10-signs": "top 10 %, signs",
    "top-1": "top 1 %",
    "top-1-signs": "top 1 %, signs",
    "random-10": "random 10 %",
    "random-1": "random 1 %",
    "ferret-1-16": "ferret 1/16",
    "ferret-1-64": "ferret 1/64",
}
OTHERS = {
    "head-dense": "head, dense",
    "lora-dense": "LoRA, dense",
    "lora-sign-error-feedback": "LoRA, sign, error feedback",
    "lora-top-1-signs-error-feedback": "LoRA, top 1 %, signs, error feedback",
    "lora-top-4-signs-error-feedback": "LoRA, top 4 %, signs, error feedback",
    "lora-ferret-1-64-error-feedback": "LoRA, ferret 1/64, error feedback",
    "lora-flasc-top-25-both-ways": "LoRA, FLASC, top 25 % both ways",
    "ef21-sign": "head, sign, EF21",
    "ef21-top-10-signs": "head, top 10 %, signs, EF21",
    "ef21-top-1": "head, top 1 %, EF21",
    "ef21-random-10": "head, random 10 %, EF21",
    "ternary-weights": "head, ternary weights",
    "ternary-weights-fttq": "head, ternary weights, FTTQ",
    "lora-ternary-weights-fttq-head-exact": "LoRA, ternary weights, FTTQ, head as it is",
    "ternary-changes-both-ways-error-feedback": "head, ternary changes both ways",
    "zeroth-order-1-16": "head, zeroth order, ferret 1/16",
    "zeroth-order-1-64": "head, zeroth order, ferret 1/64",
    "centralised-head": "centralised, head, dense",
    "local-only-head": "local only, head",
}
REAL = {
    "head-dense": "head, dense",
    "sign-error-feedback": "sign, error feedback",
    "ternary-error-feedback": "ternary, error feedback",
    "top-10-signs-error-feedback": "top 10 %, signs, error feedback",
    "top-1-signs-error-feedback": "top 1 %, signs, error feedback",
    "ferret-1-16-error-feedback": "ferret 1/16, error feedback",
    "centralised-head": "centralised, head, dense",
}


def _bytes(study: str, name: str) -> float:
    """What a client sends in a round, headers included, on average over rounds and seeds."""
    cells = results_of(study, name).values()
    return fmean(one.number("bytes_up_per_client_round") for one in cells)


def _full(study: str, dense: str) -> float:
    """The same of full fine-tuning with a dense codec, as it was encoded once."""
    cells = results_of(study, dense).values()
    return fmean(one.number("full_bytes_up_per_client_round") for one in cells)


def _cost(study: str, name: str, dense: str = "head-dense") -> list[str]:
    sent = _bytes(study, name)
    return [f"{sent:,.0f}", f"1 / {_full(study, dense) / sent:,.0f}"]


def _seeds(row: Row) -> str:
    return ", ".join(map(str, row.values))


def digits() -> str:
    """By codec, without and with error feedback, against the dense head."""
    dense = read_row(DIGITS, "head-dense")
    rows = []
    for name, label in CODECS.items():
        plain = find_row(DIGITS, f"{name}-none", label)
        fed = find_row(DIGITS, f"{name}-error-feedback", label)
        if plain is None or fed is None:
            continue
        each = [spread(one.values, 2) for one in (plain, fed)]
        ahead = signed(difference(fed, dense), 2)
        rows.append([label, *_cost(DIGITS, f"{name}-error-feedback"), *each, ahead, _seeds(fed)])
    head = ["", "bytes", "of full", "alone", "error feedback", "against dense", "seeds"]
    return lines(head, rows)


def others() -> str:
    return _table(DIGITS, OTHERS)


def front() -> str:
    """The rows for which no other is as accurate for as few bytes, by bytes."""
    fed = (
        (f"{name}-error-feedback", f"head, {label}, error feedback")
        for name, label in CODECS.items()
    )
    alone = ((f"{name}-none", f"head, {label}") for name, label in CODECS.items())
    found = []
    for name, label in (*alone, *fed, *OTHERS.items()):
        row = find_row(DIGITS, name, label)
        # Where all data are in one place nothing is sent between clients.
        if row is not None and not name.startswith("centralised"):
            found.append((_bytes(DIGITS, name), fmean(row.values.values()), name, label))
    rows, best = [], 0.0
    for _, accuracy, name, label in sorted(found, key=lambda one: (one[0], -one[1])):
        if accuracy > best:
            best = accuracy
            rows.append([*_cost(DIGITS, name), f"{accuracy:.1f}", label])
    return lines(["bytes", "of full", "accuracy", ""], rows)


def photographs() -> str:
    return _table(PHOTOGRAPHS, REAL)


def larger() -> str:
    """LoRA on models that were not made for this package, dense and as a few signs."""
    rows = []
    for study, model in LARGER.items():
        if not (RESULTS / f"{study}.csv").exists():
            continue
        dense = read_row(study, "lora-dense")
        for name, label in WAYS.items():
            row = read_row(study, name)
            ahead = "" if row.values == dense.values else signed(difference(row, dense), 2)
            cost = _cost(study, name, "lora-dense")
            rows.append([f"{model}, {label}", *cost, spread(row.values, 2), ahead, _seeds(row)])
    return lines(["", "bytes", "of full", "accuracy", "against dense LoRA", "seeds"], rows)


def _table(study: str, names: dict[str, str]) -> str:
    dense = read_row(study, "head-dense")
    rows = []
    for name, label in names.items():
        row = find_row(study, name, label)
        if row is not None:
            ahead = "" if name == "head-dense" else signed(difference(row, dense), 2)
            cost = _cost(study, name)
            rows.append([label, *cost, spread(row.values, 2), ahead, _seeds(row)])
    return lines(["", "bytes", "of full", "accuracy", "against dense head", "seeds"], rows)


TABLES = {
    "digits": digits,
    "others": others,
    "front": front,
    "photographs": photographs,
    "larger": larger,
}
