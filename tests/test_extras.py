"""What `tools.extras` tries, and what it makes of how commands end."""

import tomllib
from pathlib import Path

import pytest

from tools.extras.probes import (
    Ended,
    Row,
    judge_use,
    judge_without,
    read_probes,
    usual_words,
    write_table,
)

ROOT = Path(__file__).parents[1]
SAYS = ("fedpeft[secure]", "pycryptodome")


def test_every_extra_has_a_probe_or_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    probes, apart = read_probes(project["optional-dependencies"])
    assert probes.keys() | apart.keys() == project["optional-dependencies"].keys()
    assert apart.keys() == {"dev", "race-flower", "race-pfl", "trl"}
    assert probes["secure"].says == ("fedpeft[secure]", "cryptography", "pycryptodome")
    assert probes["privacy"].without == probes["privacy"].use
    assert probes["oneshot"].without == "fedpeft keygen c001"


def test_an_extra_without_a_table_and_a_table_without_an_extra_are_named(tmp_path: Path) -> None:
    path = tmp_path / "probes.toml"
    path.write_text("[old]\nuse = 'true'\n")
    with pytest.raises(ValueError, match=r"only one of .* has new, old"):
        read_probes({"new": ["a>=1"]}, path)


@pytest.mark.parametrize(
    ("ended", "verdict"),
    [
        (Ended(0, "fedpeft[secure] pycryptodome"), "works without it"),
        (Ended(2, "say pip install 'fedpeft[sec\n  ure]' or 'pycrypto\ndome>=3'"), "named"),
        (Ended(2, "say pip install 'fedpeft[secure]'"), "not named: pycryptodome"),
        (Ended(1, "no"), "not named: fedpeft[secure], pycryptodome"),
        (
            Ended(1, "Traceback (most recent call last):\nE: fedpeft[secure] pycryptodome\n\n"),
            "ends with a traceback: E: fedpeft[secure] pycryptodome",
        ),
    ],
)
def test_a_message_names_the_extra_and_its_packages(ended: Ended, verdict: str) -> None:
    assert judge_without(ended, SAYS) == verdict


def test_a_command_that_fails_is_told_by_its_last_line() -> None:
    assert judge_use(Ended(0, "")) == "yes"
    assert judge_use(Ended(3, "one\n  two \n\n")) == "no: two"
    assert judge_use(Ended(3, "")) == "no: it said nothing"


def test_the_table_has_what_was_tried_and_why_others_were_not() -> None:
    good = Row("a", "2, 13", "yes", "named")
    assert good.good and not Row("b", "1, 1", "yes", "works without it").good
    assert write_table([good], {"dev": "it is large"}).splitlines()[2:] == [
        "| `a` | 2, 13 | yes | named |",
        "",
        "`dev` was not tried: it is large.",
    ]


def test_packages_are_named_without_their_bounds() -> None:
    assert usual_words("x", ["flwr[simulation]==1.41.0", "h5py>=3.11,<4"]) == [
        *("fedpeft[x]", "flwr", "h5py")
    ]
