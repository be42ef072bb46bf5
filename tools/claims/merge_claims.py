"""The table of docs/results/merges.md: which rule of merging LoRA's factors saves one round."""

from tools.claims.rows import Row, difference, find_row, lines, read_row, signed, spread

STUDY = "merge-rules-small"
RULES = {
    "mean": "the mean of A and of B",
    "fedex": "fedex",
    "flora": "flora",
    "flexlora": "flexlora",
    "lora-fair": "lora_fair",
    "fedask": "fedask",
    "hetlora": "hetlora",
    "ties": "ties",
    "ties-all-changes": "ties, all changes kept",
    "agreeing": "agreeing",
    "median": "median",
    "class-rows": "the mean, head rows by class counts",
}
ALONE = {
    "flora-at-half-strength-one-round": "flora at half strength",
    "flora-at-a-quarter-one-round": "flora at a quarter",
    "head-one-round": "the head alone",
    "local-only": "local only",
}
MANY = {"rolora-ten-rounds": "rolora", "centralised": "centralised, ten epochs"}


def rules() -> str:
    """Every rule in one round, against the mean's one, and in ten."""
    mean = read_row(STUDY, "mean-rounds-epochs-1-10")
    found = []
    for name, label in RULES.items():
        one = find_row(STUDY, f"{name}-rounds-epochs-1-10", label)
        many = find_row(STUDY, f"{name}-rounds-epochs-10-1", label)
        found.append(_row(label, one, many, mean))
    found += [_row(label, find_row(STUDY, name), None, mean) for name, label in ALONE.items()]
    found += [_row(label, None, find_row(STUDY, name), mean) for name, label in MANY.items()]
    head = ["", "seeds, one", "one round", "against the mean's one", "seeds, ten", "ten rounds"]
    return lines(head, found)


def _row(label: str, one: Row | None, many: Row | None, mean: Row) -> list[str]:
    ahead = signed(difference(one, mean)) if one and one.values != mean.values else ""
    return [
        label,
        str(len(one.values)) if one else "",
        spread(one.values) if one else "",
        ahead,
        str(len(many.values)) if many else "",
        spread(many.values) if many else "",
    ]


TABLES = {"rules": rules}
