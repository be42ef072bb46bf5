"""Multiple-choice questions of EleutherAI's `lm-eval`; those of MMLU (Hendrycks et al., 2020,
arXiv:2009.03300) also from a folder. Nothing but this module and `benchmark` knows that library."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from fedpeft.data.reading import read_splits
from fedpeft.errors import DataError, FedpeftError, RunError, explain_install
from fedpeft.storage.locate import locate
from fedpeft.tasks.pretrained import quiet as quiet_transformers

MMLU = "mmlu"
COLUMNS = ("subject", "question", "choices", "answer")
CHOSEN = "multiple_choice"
SHOTS_SEED = 1234
"""Of tasks that draw their shots: the one of lm-eval's own command, so that they are the same."""


@dataclass(frozen=True)
class Asked:
    """What is asked of a model.

    Attributes:
      name: of a task, group or tag of lm-eval, or the YAML file of such a task.
      shots: answered questions before each; None for as many as the task says, as a rule none.
      limit: the first so many questions of each task; None for all.
      mmlu: a folder of MMLU's tables; None for `mmlu` here or in $FEDPEFT_DATA, and if there is
        none, for the hub's.
    """

    name: str
    shots: int | None = None
    limit: int | None = None
    mmlu: Path | None = None


@dataclass(frozen=True)
class Question:
    """One question with its shots.

    Attributes:
      task: the name of the task that it is from.
      requests: what is given and what may follow, for each choice.
      choices: how many answers there are to choose from.
      score: from the log-likelihood of each request, and whether it is the likeliest text, to the
        task's metrics.
    """

    task: str
    requests: Sequence[tuple[str, str]]
    choices: int
    score: Callable[[Sequence[tuple[float, bool]]], Mapping[str, Any]]


def require_lm_eval() -> None:
    """Raises RunError if lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise RunError(f"a benchmark needs lm-eval: {explain_install('lm-eval')}")


def questions(asked: Asked) -> tuple[list[Question], int]:
    """All that is asked, and the number of shots before each.

    Raises:
      RunError: no such task, or none that is answered by choosing.
      DataError: its questions cannot be had.
    """
    with quiet_lm_eval():
        try:
            tasks = _tasks(asked)
            shots = {_set_shots(task, asked.shots) for task in tasks}
            for task in tasks:
                task.build_all_requests(limit=asked.limit)
        except FedpeftError:
            raise
        # A task is a small program of its author, and reads from anywhere.
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise DataError(
                f"the questions of {asked.name!r} cannot be had: {reason}. "
                "Files that are not on this machine come from the hub: "
                "fetch it once where there is a network"
            ) from None
    if len(shots) > 1:
        raise RunError(
            f"the tasks of {asked.name!r} have {sorted(shots)} shots of their own: say how many, "
            "with --shots"
        )
    return [one for task in tasks for one in _questions(task)], shots.pop()


def _questions(task: Any) -> Iterator[Question]:
    by_question: dict[int, list[Any]] = {}
    for request in task.instances:
        by_question.setdefault(request.doc_id, []).append(request)
    for requests in by_question.values():
        doc = requests[0].doc
        yield Question(
            task.task_name,
            [one.args for one in requests],
            len(task.doc_to_choice(doc)),
            _scorer(task, doc),
        )


def _scorer(task: Any, doc: Any) -> Callable[[Sequence[tuple[float, bool]]], Mapping[str, Any]]:
    return lambda answers: task.process_results(doc, answers)


def _tasks(asked: Asked) -> list[Any]:
    """The tasks that a name stands for, with their data.

    Raises:
      RunError: there are none, or they are not answered by choosing.
      DataError: a folder does not hold them.
    """
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    own = TaskManager(
        include_defaults=False, include_path=Path(lm_eval.tasks.__file__).parent / MMLU / "default"
    )
    folder = asked.mmlu or locate(MMLU)
    if folder is not None and asked.name in own.all_tasks:
        return _from_folder(own, asked.name, folder)
    if asked.mmlu is not None:
        raise RunError(f"{asked.name!r} is none of MMLU's tasks: leave out --mmlu")
    manager = own if asked.name in own.all_tasks else _manager(asked.name)
    tasks = list(manager.load(asked.name)["tasks"].values())
    if other := sorted({task.OUTPUT_TYPE for task in tasks} - {CHOSEN}):
        raise RunError(
            f"{asked.name!r} is no multiple choice but {', '.join(other)}: "
            "measured are questions whose answers are chosen by their log-likelihood, "
            "such as mmlu, arc_challenge, hellaswag, winogrande"
        )
    return tasks


def _manager(name: str) -> Any:
    """What knows the task of a name or file.

    Raises:
      RunError: nothing does.
    """
    from lm_eval.tasks import TaskManager

    is_file = Path(name).is_file()
    # lm-eval reads all of its thousands of files only where it must.
    manager = TaskManager(include_defaults=not is_file)
    if name not in manager.all_tasks and not is_file:
        near = get_close_matches(name, manager.all_tasks, n=3, cutoff=0.6)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise RunError(
            f"lm-eval has no task called {name!r}, and there is no such file.{hint} "
            "`lm-eval ls tasks` lists them"
        )
    return manager


def _from_folder(manager: Any, name: str, folder: Path) -> list[Any]:
    """MMLU's tasks as lm-eval has them, on rows of this machine.

    Raises:
      DataError: the folder does not hold them.
    """
    from lm_eval.api.task import ConfigurableTask

    splits, _ = read_splits(str(folder.resolve()))
    if "test" not in splits or any(
        set(COLUMNS) - set(rows.column_names) for rows in splits.values()
    ):
        raise DataError(
            f"{folder} is no MMLU: it needs tables dev and test with the columns "
            f"{', '.join(COLUMNS)}"
        )
    tasks = []
    for leaf in _leaves(manager, name):
        about = {key: value for key, value in manager.task_index[leaf].cfg.items() if key != "tag"}
        rows = {split: _of(every, about["dataset_name"]) for split, every in splits.items()}
        if not len(rows["test"]):
            raise DataError(
                f"{folder} has no questions of {about['dataset_name']!r}, which belong to {name!r}"
            )
        given = {"test": rows["test"], "dev": rows.get("validation")}
        tasks.append(ConfigurableTask(config={**about, "custom_dataset": _always(given)}))
    return tasks


def _of(rows: Any, subject: str) -> Any:
    return rows.select([k for k, one in enumerate(rows["subject"]) if one == subject])


def _always(rows: Mapping[str, Any]) -> Callable[..., Mapping[str, Any]]:
    return lambda **_: rows


def _leaves(manager: Any, name: str) -> list[str]:
    """The tasks that a name stands for."""
    entry = manager.task_index[name]
    if name in manager.all_groups:
        members = entry.cfg["task"]
    elif name in manager.all_tags:
        members = sorted(entry.tags)
    else:
        return [name]
    return [leaf for member in members for leaf in _leaves(manager, member)]


def _set_shots(task: Any, shots: int | None) -> int:
    """How many shots a task has, after it was told.

    Raises:
      RunError: it has none, whatever it is told.
    """
    own = task.get_config("num_fewshot")
    if shots and own == 0:
        raise RunError(
            f"the task {task.task_name!r} is without shots by its own rules: leave out --shots"
        )
    if shots is not None or own is None:
        task.set_config("num_fewshot", shots or 0)
    task.set_fewshot_seed(SHOTS_SEED)
    return int(task.get_config("num_fewshot"))


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Without warnings of what is wanted here, or counted, such as long texts; and without a bar
    for each task."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet_transformers(), redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(level)
