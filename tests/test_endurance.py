"""What the benchmark of random kills says of memory."""

from benchmarks.endurance import held, rising


def test_a_slope_is_common_to_processes_of_different_levels() -> None:
    assert rising([[(0, 10), (1, 12), (2, 14)], [(5, 100), (6, 102)], [(9, 7)]]) == (2.0, 0.0)


def test_the_standard_error_by_hand() -> None:
    """Residuals -1/3, 2/3, -1/3 with one degree of freedom left, and a spread of 2: the root of 2/3
    / 2."""
    assert rising([[(0, 0), (1, 1), (2, 0)]]) == (0.0, 0.58)
    assert rising([[(0, 0), (1, 1)]]) == (None, None)


def test_what_a_process_takes_while_it_loads_is_not_in_its_slope() -> None:
    lines = [{"round": k, "kib": 1024 * (100 if k else 1) + k, "files": 4} for k in range(5)]
    short = [{"round": 3, "kib": 5, "files": 9}]
    told = held([short, lines], settling=1)
    assert told["kib_a_round"] == 1.0 and told["longest_mib_first"] == 100.0
    assert (told["processes"], told["longest_rounds"], told["readings"]) == (2, 3, 4)
