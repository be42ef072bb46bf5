"""The tables of docs/results/one-shot.md: what one round loses against several (arXiv:2412.04650)."""

from keeping import Row, difference, kept, lines, signed, spread

SKEWS = {"dirichlet-0.1": "Dirichlet 0.1", "dirichlet-100": "Dirichlet 100"}


def _pair(study: str, start: str, many: str, end: str, metric: str = "accuracy") -> list[Row]:
    """Many rounds, and one."""
    rounds, _, epochs = many.partition("-")
    whole = int(rounds) * int(epochs)
    names = [f"{start}rounds-epochs-{times}-{end}" for times in (many, f"1-{whole}")]
    return [kept(study, name, metric=metric) for name in names]


def _against(rows: list[tuple[str, list[Row]]], many: str, digits: int = 1) -> str:
    return lines(
        ["", "seeds", many, "one round", "one round against many", "MiB of many", "MiB of one"],
        [
            [
                label,
                str(len(several.values)),
                spread(several.values, digits),
                spread(one.values, digits),
                signed(difference(one, several), digits),
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


def photographs() -> str:
    return _against(
        [
            (f"ViT-Tiny, {label}, {skew}", _pair("one-shot-vit-tiny", f"{start}-", "3-1", name))
            for name, label in {"full": "full", "lora": "LoRA"}.items()
            for start, skew in SKEWS.items()
        ],
        "three rounds",
    )


def instructions() -> str:
    return _against(
        [
            (label, _pair("one-shot-dolly", "", "3-1", name, "loss"))
            for name, label in {"full": "full", "lora": "LoRA"}.items()
        ],
        "three rounds",
        digits=3,
    )


def beside() -> str:
    """What there is without a federation."""
    digits = {
        "centralised-full-micro-vit": "digits: centralised, micro ViT, full",
        "centralised-lora-micro-vit": "digits: centralised, micro ViT, LoRA",
        "centralised-small-resnet": "digits: centralised, small ResNet",
        "head-dirichlet-0.1-one-round": "digits: frozen micro ViT, new head, one round, Dirichlet 0.1",
        "local-only": "digits: local only, micro ViT, LoRA, Dirichlet 0.1",
    }
    pictures = {
        "centralised-lora": "photographs: centralised, ViT-Tiny, LoRA",
        "head-dirichlet-0.1-one-round": "photographs: frozen ViT-Tiny, new head, one round, Dirichlet 0.1",
        "local-only": "photographs: local only, ViT-Tiny, LoRA, Dirichlet 0.1",
    }
    rows = [[label, spread(kept("one-shot-small", name).values)] for name, label in digits.items()]
    rows += [[label, spread(kept("one-shot-vit-tiny", name).values)] for name, label in pictures.items()]
    return lines(["", "accuracy"], rows)


def spoken() -> str:
    names = {
        "centralised-full": "centralised, full",
        "centralised-lora": "centralised, LoRA",
        "local-only": "local only",
    }
    rows = [[label, spread(kept("one-shot-dolly", name, metric="loss").values, 3)] for name, label in names.items()]
    return lines(["", "loss"], rows)


TABLES = {
    "digits": digits,
    "photographs": photographs,
    "instructions": instructions,
    "beside": beside,
    "spoken": spoken,
}
