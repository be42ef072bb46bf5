"""The tables of docs/results/one-shot.md: what one round loses against several (arXiv:2412.04650)."""

from keeping import Row, difference, kept, lines, signed, spread

SKEWS = {"dirichlet-0.1": "Dirichlet 0.1", "dirichlet-100": "Dirichlet 100"}


def _pair(study: str, start: str, many: str, end: str) -> list[Row]:
    """Many rounds, and one."""
    rounds, _, epochs = many.partition("-")
    whole = int(rounds) * int(epochs)
    names = [f"{start}rounds-epochs-{times}-{end}" for times in (many, f"1-{whole}")]
    return [kept(study, name) for name in names]


def _against(rows: list[tuple[str, list[Row]]], many: str) -> str:
    return lines(
        ["", "seeds", many, "one round", "one round against many", "MiB of many", "MiB of one"],
        [
            [
                label,
                str(len(several.values)),
                spread(several.values),
                spread(one.values),
                signed(difference(one, several)),
                f"{several.megabytes:,.2f}",
                f"{one.megabytes:,.2f}",
            ]
            for label, (several, one) in rows
        ],
    )


def digits() -> str:
    models = {
        "small-resnet-from-scratch": "small ResNet from scratch",
        "full-micro-vit": "micro ViT, full",
        "lora-micro-vit": "micro ViT, LoRA",
    }
    return _against(
        [
            (f"{label}, {skew}", _pair("one-shot-small", f"{start}-", "10-1", name))
            for name, label in models.items()
            for start, skew in SKEWS.items()
        ],
        "ten rounds",
    )


def beside() -> str:
    """What there is without a federation, or without tuning more than a head."""
    names = {
        "centralised-full-micro-vit": "centralised, micro ViT, full",
        "centralised-lora-micro-vit": "centralised, micro ViT, LoRA",
        "centralised-small-resnet": "centralised, small ResNet",
        "head-dirichlet-0.1-one-round": "frozen micro ViT, new head, one round, Dirichlet 0.1",
        "local-only": "local only, micro ViT, LoRA, Dirichlet 0.1",
    }
    return lines(
        ["", "accuracy"], [[label, spread(kept("one-shot-small", name).values)] for name, label in names.items()]
    )


TABLES = {"digits": digits, "beside": beside}
