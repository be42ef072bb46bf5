"""`fedpeft bundle`: what goes along to a site without a network, and what is refused."""

import json
from base64 import urlsafe_b64encode
from hashlib import sha256
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from running import fedpeft

from fedpeft import RunError, read_plan
from fedpeft.deploy.offline import pin_requirements, write_offline
from fedpeft.deploy.own_wheel import write_wheel


def installed(folder: Path, files: dict[str, str]) -> Distribution:
    """A package as pip leaves it: its files, and a RECORD of their names."""
    described = folder / "small-1.0.dist-info"
    texts = {**files, "small-1.0.dist-info/METADATA": "Name: small\nVersion: 1.0\n"}
    texts |= {"small-1.0.dist-info/INSTALLER": "pip\n", "small/__pycache__/a.pyc": "x"}
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (described / "RECORD").write_text("".join(f"{path},,\n" for path in [*texts, "../bin/small"]))
    return Distribution.at(described)


def test_an_installed_package_becomes_a_wheel_again(tmp_path: Path) -> None:
    package = installed(tmp_path / "site", {"small/__init__.py": "", "small/a.py": "one = 1\n"})
    wheel = write_wheel(package, tmp_path / "wheels")
    assert wheel.name == "small-1.0-py3-none-any.whl"
    with ZipFile(wheel) as file:
        assert sorted(file.namelist()) == [
            *("small-1.0.dist-info/METADATA", "small-1.0.dist-info/RECORD"),
            *("small/__init__.py", "small/a.py"),
        ]
        record = file.read("small-1.0.dist-info/RECORD").decode().splitlines()
    digest = urlsafe_b64encode(sha256(b"one = 1\n").digest()).rstrip(b"=").decode()
    assert f"small/a.py,sha256={digest},8" in record
    first = wheel.read_bytes()
    assert write_wheel(package, tmp_path / "again").read_bytes() == first


def test_a_checkout_says_how_a_wheel_is_made_and_takes_one_that_is_there(tmp_path: Path) -> None:
    package = installed(tmp_path / "site", {"small.pth": "/somewhere\n"})
    with pytest.raises(RunError, match="runs from a checkout here: build its wheel"):
        write_wheel(package, tmp_path / "wheels")
    given = tmp_path / "small-1.0-py3-none-any.whl"
    given.write_bytes(b"made before")
    (tmp_path / "wheels").mkdir()
    assert write_wheel(package, tmp_path / "wheels", tmp_path).read_bytes() == b"made before"


def test_all_that_is_needed_is_pinned_and_nothing_of_other_extras() -> None:
    plain = {one.partition("==")[0]: one for one in pin_requirements(())}
    assert plain["torch"] == f"torch=={distribution('torch').version}"
    assert {"numpy", "tokenizers"} <= plain.keys()  # the latter is needed by transformers alone
    assert not {"fedpeft", "cryptography", "flwr", "pytest"} & plain.keys()
    more = {one.partition("==")[0] for one in pin_requirements(("oneshot",))}
    assert more - plain.keys() >= {"cryptography", "cffi"}
    for line in distribution("transformers").requires or []:
        need = Requirement(line)
        if need.marker is None:
            assert need.name.replace("_", "-").lower() in plain
    with pytest.raises(RunError, match="there is no extra 'onshot'; there are"):
        pin_requirements(("onshot",))


def save_wheel(folder: Path, pinned: str) -> str:
    """An empty wheel of `name==version`, which pip takes for that package; gives its name."""
    name, _, version = pinned.partition("==")
    stem = f"{name.replace('-', '_')}-{version}"
    described = f"{stem}.dist-info"
    path = folder / f"{stem}-py3-none-any.whl"
    with ZipFile(path, "w") as file:
        file.writestr(f"{described}/METADATA", f"Name: {name}\nVersion: {version}\n")
        file.writestr(f"{described}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{described}/RECORD", "")
    return path.name


@pytest.mark.slow  # pip looks at a wheel of each package
def test_a_folder_holds_the_wheels_the_plan_the_model_and_sums_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheelhouse"
    wheels.mkdir()
    own = "fedpeft-0.1.0-py3-none-any.whl"
    (wheels / own).write_bytes(b"own")
    save_wheel(wheels, "pytest==1.0")  # which nothing needs
    needed = {save_wheel(wheels, one) for one in pin_requirements(())}
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "start").write_text("{}")
    monkeypatch.setenv("FEDPEFT_DATA", str(tmp_path / "models"))
    plan = read_plan("model = 'micro-vit'\n[method]\nname = 'lora'\ninit = 'start'\n")
    out = tmp_path / "stick"
    told = list(write_offline(plan, out, (), wheels))
    assert len(told) == 4 and told[-1].startswith(f"{out}: copy it as it is")
    assert {path.name for path in (out / "wheels").iterdir()} == {own, *needed}
    assert f"and {len(needed)} packages" in told[0]
    assert read_plan(out / "plan.toml").fingerprint == plan.fingerprint
    assert json.loads((out / "models" / "micro-vit" / "config.json").read_text())
    assert (out / "models" / "start").read_text() == "{}"
    for line in (out / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert sha256((out / name).read_bytes()).hexdigest() == digest
    assert "'fedpeft'" in (out / "install.sh").read_text()
    assert "--no-index" in (out / "install.sh").read_text()
    with pytest.raises(RunError, match="is there already"):
        next(write_offline(plan, out, (), wheels))


@pytest.mark.parametrize(
    ("model", "said"),
    [("nobody/has-this", "is not on this machine"), ("{here}", "is a place on this machine")],
)
def test_a_model_that_cannot_go_along_is_refused(tmp_path: Path, model: str, said: str) -> None:
    plan = read_plan({"model": model.format(here=tmp_path)})
    with pytest.raises(RunError, match=said):
        next(write_offline(plan, tmp_path / "stick", ()))
    assert not (tmp_path / "stick").exists()


def test_a_checkout_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    told = fedpeft("bundle", "-o", tmp_path / "stick", "--wheels", tmp_path / "empty")
    assert told.exit_code == 2
    assert "runs from a checkout here" in told.stderr
    assert not (tmp_path / "stick").exists()


@pytest.mark.slow  # pip begins, and finds nothing
def test_the_command_tells_what_it_could_not_fetch_and_leaves_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "fedpeft-0.1.0-py3-none-any.whl").write_bytes(b"own")
    told = fedpeft("bundle", "-o", tmp_path / "stick", "--wheels", tmp_path / "few")
    assert told.exit_code == 2
    assert "pip could not fetch the wheels" in told.stderr and "--wheels FOLDER" in told.stderr
    assert list((tmp_path / "stick").iterdir()) == []
