"""Contributions as one model, in a run's folder like any other, from which one can be taken again.

Beside what a run has, `contributions/` holds each file as it came, and `study/` the invitation, the
server's key, what is asked of a file, and in which order they came. Whenever a file comes or goes
the model is computed again from those that are there, in the order of the clients' names: it cannot
depend on when each came, and nothing is left of one that is gone. A merged folder stands for the
files in it, so that a merge of merges is the merge of all, to the bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

from fedpeft.core.types import ClientId
from fedpeft.errors import RunError
from fedpeft.oneshot.contribution import read_contribution
from fedpeft.oneshot.invitation import FILE, Invitation, read_invitation, server_key
from fedpeft.oneshot.keys import Trust, sealing_key, write_private
from fedpeft.oneshot.merged_run import write_run
from fedpeft.oneshot.rejections import ContributionError, Rejection
from fedpeft.oneshot.replace_folder import clear, put_back, replace_when_built
from fedpeft.oneshot.rules import Came, Rules, check_change, check_together
from fedpeft.registry import REGISTERED, Code
from fedpeft.runs.folder import RunFolder, lock_run, read_json, vacant, write_json
from fedpeft.storage.client_memory import Folder
from fedpeft.storage.files import ahead, private_folder, write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

STUDY, RULES, ORDER, KEY = (
    "study",
    "rules.json",
    "order.json",
    "server.key",
)


@dataclass(frozen=True)
class Merged:
    """A folder that files were merged into."""

    path: Path

    @property
    def study(self) -> Path:
        return self.path / STUDY

    @property
    def key(self) -> "X25519PrivateKey":
        return sealing_key(self.study / KEY)

    @property
    def contributions(self) -> Path:
        return RunFolder(self.path).contributions

    def file(self, client: ClientId) -> Path:
        """Where a client's file is kept: names may differ only in what a file system takes for the
        same."""
        return self.contributions / f"{Folder(self.contributions).place(client).name}.safetensors"


def is_merged(path: Path) -> bool:
    put_back(path)
    return (path / STUDY / FILE).is_file()


def merge(
    invitation: Path,
    files: Sequence[Path],
    out: Path,
    rules: Rules,
    evaluate: bool = False,
    code: Code = REGISTERED,
) -> dict[str, Any]:
    """Merge files into the new run folder `out`; returns its summary.

    Args:
      files: of contributions, or merged folders, whose files are meant.
      code: which modules the invitation's plan may name.

    Raises:
      ContributionError: one is not as it must be; nothing is merged then.
      RunError: `invitation` is none, its key is gone, `out` is taken, or too few came.
    """
    if is_merged(out):
        raise RunError(f"{out} holds a merge already: `fedpeft merge {out} --add FILE` adds to it")
    vacant(out)
    clear(out)
    study, private = read_invitation(invitation, code), server_key(invitation)
    if not private.is_file():
        raise RunError(
            f"{private} is gone, the key that opens this study's files: put it back beside the "
            "invitation"
        )
    every = _admit(study, sealing_key(private), rules, {}, files)
    with replace_when_built(out, new=True) as folder:
        summary = _write(Merged(folder), study, every, rules, evaluate)
        # A copy, as of the files: who comes later is opened without the invitation.
        write_private(folder / STUDY / KEY, private.read_bytes())
    return summary


def change(
    path: Path,
    add: Sequence[Path] = (),
    remove: Sequence[ClientId] = (),
    evaluate: bool = False,
    asked: Callable[[Rules], Rules] = lambda rules: rules,
    code: Code = REGISTERED,
) -> dict[str, Any]:
    """Take clients out of a merge, then add files to it, all or none of it; returns the new
    summary.

    Args:
      add: files, or merged folders, whose files are meant.
      asked: of the rules so far those that hold from now on, for what is merged already too.
      code: which modules the plan may name.

    Raises:
      ContributionError: a file is not as it must be, be it one that was merged before.
      RunError: `path` is no merge, somebody else works on it, or there is no such client.
    """
    if not is_merged(path):
        raise RunError(f"{path} is no merge: it has no {STUDY}/{FILE}")
    before = Merged(path)
    with lock_run(RunFolder(path)):
        # With the lock and before a file is read: what lies beside is then nobody's.
        clear(path)
        study = read_invitation(before.study, code)
        check_change(study, add, remove)
        rules = asked(_rules(before.study / RULES))
        kept = _without(_read_kept(before, study, rules), remove)
        every = _admit(study, before.key, rules, kept, add)
        with replace_when_built(path) as folder:
            summary = _write(Merged(folder), study, every, rules, evaluate)
    return summary


def _write(
    merged: Merged, study: Invitation, came: Came, rules: Rules, evaluate: bool
) -> dict[str, Any]:
    every = [one for _, one in came.values()]
    if not every:
        raise RunError("no contribution is there to make a model of")
    summary = write_run(merged.path, study, every, evaluate)
    private_folder(merged.contributions)
    for one in every:
        write_atomically(merged.file(one.header.client), one.content, private=True)
    copytree(study.path, merged.study)
    write_json(merged.study / RULES, rules.values())
    write_json(merged.study / ORDER, {"clients": list(came)})
    return summary


def _rules(path: Path) -> Rules:
    values = read_json(path) or {}
    try:
        return Rules.of(values)
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{path} is damaged or gone: what is asked of a file is not known") from None


def _read_kept(merged: Merged, study: Invitation, rules: Rules) -> Came:
    """What was merged before, as strictly read as when it came, in the order of arrival as far as
    it is known."""
    key, trust = merged.key, Trust(rules.trust)
    found = {}
    for file in ahead(list(merged.contributions.glob("*.safetensors"))):
        one = read_contribution(file, study, key, trust)
        found[one.header.client] = file, one
    order = (read_json(merged.study / ORDER) or {}).get("clients", [])
    # Those of whom no order is kept come last, by name; who is in both lists stays at its first
    # place.
    known = [client for client in order if client in found]
    return {client: found[client] for client in (*known, *sorted(found))}


def _without(kept: Came, remove: Sequence[ClientId]) -> Came:
    for name in remove:
        if name not in kept:
            raise RunError(f"{name!r} is not among those merged: {', '.join(sorted(kept))}")
    return {client: one for client, one in kept.items() if client not in remove}


def _files_of(path: Path) -> Sequence[Path]:
    """A file itself; of a merged folder, such as a region's, the files that were merged in it.

    Raises:
      RunError: the folder is none of these.
    """
    if not path.is_dir():
        return [path]
    if not is_merged(path):
        raise RunError(
            f"{path} is a folder and no merge: give contribution files, such as {path}/*"
            ".safetensors, or folders that `fedpeft merge` wrote"
        )
    return sorted(Merged(path).contributions.glob("*.safetensors"))


def _admit(
    study: Invitation, key: "X25519PrivateKey", rules: Rules, before: Came, files: Sequence[Path]
) -> Came:
    """Those before and new ones, each good for itself and beside all others."""
    trust, every = Trust(rules.trust), dict(before)
    for file in ahead([file for path in files for file in _files_of(path)]):
        one = read_contribution(file, study, key, trust)
        client = one.header.client
        if client in every:
            where = "merged already" if client in before else f"in {every[client][0]} too"
            words = (
                f"{client!r} is {where}; a client counts once. "
                "To take a newer file, --remove it first"
            )
            raise ContributionError(Rejection.TWICE, file, words)
        every[client] = file, one
    check_together(every, before, rules, study)
    return every
