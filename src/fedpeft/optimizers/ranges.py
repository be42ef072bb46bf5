"""What the settings of Adam and its kin may be."""


def check_adam_settings(beta1: float, beta2: float, eps: float, weight_decay: float) -> None:
    """Raises ValueError for a β outside [0, 1), and for an ε or a decay that is no such number."""
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"{name} must be in [0, 1), got {beta}")
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps must be positive and finite, got {eps}")
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay must be at least 0 and finite, got {weight_decay}")
