"""What a language model knows by multiple-choice questions, before its tuning and after.

An answer is the choice whose tokens have the largest sum of log-likelihoods; `lm-eval` asks,
computes and scores.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from math import isfinite, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from torch import nn

from fedpeft.core.seeds import fold, seed_torch
from fedpeft.core.types import Tensors
from fedpeft.errors import RunError
from fedpeft.evaluation.measure import with_params
from fedpeft.plan.plan import Plan
from fedpeft.registry import REGISTERED, Code
from fedpeft.results.question_tokens import Tokens, chat_of, question_encoder
from fedpeft.results.questions import Asked, Question, questions, quiet_lm_eval, require_lm_eval
from fedpeft.rounds.site import threads
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.folder import RunFolder, read_json, reopen, write_json
from fedpeft.tasks.language import LanguageTask

METRICS = ("acc", "acc_norm")
"""Shares of right answers, as lm-eval calls them; of the second, likelihoods are by the length of
the choice."""
Z = 1.96
"""Standard errors to either side of an interval of 95 %."""
TOGETHER = 64
"""Questions between two words on how far it is."""
BATCH = 8
"""Texts in a pass: an output is as large as the vocabulary for each token."""


def benchmark(
    run: Path,
    asked: Asked,
    device: str = "cpu",
    seen: Callable[[int, int], None] = lambda done, total: None,
    code: Code = REGISTERED,
) -> dict[str, Any]:
    """Ask a run's base model, which nobody tuned, and its last checkpoint the same questions; the
    record is kept in its folder, in place of an earlier one of the same questions.

    Questions that are longer than the model's context, with shots and choices, are asked of
    neither.

    Args:
      seen: is told how many of how many answers there are.
      code: which modules the run's plan may name.

    Raises:
      RunError: no run of a language model that all clients share, no such task, or no question that
        fits.
      DataError: the questions cannot be had.
    """
    folder, plan, params, done = _open_run(run, code)
    every, shots = questions(asked)
    with threads(plan.compute.threads):
        model = make_lm(_base(plan), plan, device)
        encode = question_encoder(model, plan)
        with quiet_lm_eval():
            tokens = [[encode(*request) for request in one.requests] for one in every]
        # A prefix stands in the context too.
        room = model.max_length - getattr(plan.method, "tokens", 0)
        kept = [
            k for k, one in enumerate(tokens) if all(len(a) + len(b) <= room + 1 for a, b in one)
        ]
        if len(kept) < 2:
            raise RunError(
                f"of the {len(every):,} questions of {asked.name!r} with {shots} shots, "
                f"{len(kept)} fit the {room} tokens that the model takes, too few to measure by: "
                "ask with fewer --shots, or without --limit"
            )
        some, their = [every[k] for k in kept], [tokens[k] for k in kept]
        base = answers(model, some, their, lambda n: seen(n, 2 * len(kept)))
        del model
        model = make_lm(with_params(plan, plan.model(()), params), plan, device)
        after = answers(model, some, their, lambda n: seen(len(kept) + n, 2 * len(kept)))
    about = {
        "benchmark": asked.name,
        "shots": shots,
        "limit": asked.limit,
        "round": done,
        "context": room,
        "template": chat_of(plan),
    }
    record = {**about, "lm_eval": version("lm_eval"), **_record(every, some, base, after)}
    _keep(folder, record)
    return record


def _open_run(run: Path, code: Code) -> tuple[RunFolder, Plan, Tensors, int]:
    folder, plan = reopen(run, code)
    saved = load_checkpoint(folder.checkpoint, plan)
    if saved is None:
        raise RunError(f"{run} has no checkpoint yet: no round of it is done")
    if not isinstance(plan.task, LanguageTask) or plan.personal:
        raise RunError(
            f"{run} is no run of a language model (task causal-lm) that all clients share: it has "
            "no answers"
        )
    require_lm_eval()
    return folder, plan, saved.state.flat, saved.state.round


def _base(plan: Plan) -> nn.Module:
    """As training has it, quantized or not, with nothing put into it."""
    with seed_torch(fold(plan.seed, "model")):
        return plan.task.build((), plan.method.pretrained)


def make_lm(model: nn.Module, plan: Plan, device: str) -> Any:
    """The model as lm-eval asks one."""
    from lm_eval.models.huggingface import HFLM

    assert isinstance(plan.task, LanguageTask)
    with quiet_lm_eval():
        return HFLM(pretrained=model.to(device), tokenizer=plan.task.base, batch_size=BATCH)


def answers(
    model: Any,
    some: Sequence[Question],
    tokens: Sequence[Sequence[Tokens]],
    seen: Callable[[int], None],
) -> list[dict[str, float]]:
    """The metrics of each question; the longest are asked first.

    Raises:
      RunError: the model has no numbers to say.
    """
    # one pass for all choices of one token; where some are longer, lm-eval may mistake one question
    # for another that begins with it
    model.logits_cache = all(len(b) == 1 for one in tokens for _, b in one)
    order = sorted(range(len(some)), key=lambda k: -max(len(a) + len(b) for a, b in tokens[k]))
    found: dict[int, dict[str, float]] = {}
    for at in range(0, len(order), TOGETHER):
        part = order[at : at + TOGETHER]
        asked = [(r, *t) for k in part for r, t in zip(some[k].requests, tokens[k], strict=True)]
        heard = iter(model._loglikelihood_tokens(asked, disable_tqdm=True))
        for k in part:
            found[k] = _score(some[k], list(islice(heard, len(tokens[k]))))
        seen(len(found))
    return [found[k] for k in range(len(some))]


def _score(question: Question, heard: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """The metrics of a question by the log-likelihood of each choice."""
    if not all(isfinite(likelihood) for likelihood, _ in heard):
        raise RunError("the model's log-likelihoods are no numbers: its training diverged")
    scored = question.score(heard)
    return {name: float(scored[name]) for name in METRICS if name in scored}


def _record(
    every: Sequence[Question],
    some: Sequence[Question],
    base: Sequence[Mapping[str, float]],
    tuned: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """What the answers came to.

    Raises:
      RunError: the questions have no share of right answers in common.
    """
    names = [name for name in METRICS if all(name in one for one in base)]
    if not names:
        raise RunError("these questions have neither acc nor acc_norm, the shares of right answers")
    tasks: dict[str, dict[str, Any]] = {}
    for task, asked in Counter(one.task for one in every).items():
        kept = [k for k, one in enumerate(some) if one.task == task]
        tasks[task] = {"questions": asked, "left_out": asked - len(kept)}
        if kept:
            tasks[task] |= {"base": _means(names, base, kept), "tuned": _means(names, tuned, kept)}
    return {
        "questions": len(every),
        "left_out": len(every) - len(some),
        "chance": fmean(1 / one.choices for one in some),
        "metrics": {name: _compare(name, base, tuned) for name in names},
        "tasks": tasks,
    }


def _means(
    names: Sequence[str], heard: Sequence[Mapping[str, float]], kept: Sequence[int]
) -> dict[str, float]:
    """Of some questions the mean of each metric."""
    return {name: fmean(heard[k][name] for k in kept) for name in names}


def _compare(
    name: str, base: Sequence[Mapping[str, float]], tuned: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    before, after = ([one[name] for one in heard] for heard in (base, tuned))
    apart = [b - a for a, b in zip(before, after, strict=True)]
    return {"base": share(before), "tuned": share(after), "difference": difference(apart)}


def share(right: Sequence[float]) -> dict[str, float]:
    """The share of right answers, with its standard error and Wilson's 95 % interval."""
    n, p = len(right), fmean(right)
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return {"value": p, "stderr": _error(right), "low": middle - half, "high": middle + half}


def difference(apart: Sequence[float]) -> dict[str, float]:
    """The mean of the differences, question by question: what both models know or do not know says
    nothing of it.

    The 95 % interval is that of Agresti and Min (2005, doi:10.1002/sim.1781) for pairs, which adds
    half a question to each of the four outcomes, so that models that never differed in a few
    questions are not called equal for certain.
    """
    n, total = len(apart) + 2, sum(apart)
    middle, half = total / n, Z * sqrt(sum(one**2 for one in apart) + 1 - total**2 / n) / n
    return {
        "value": fmean(apart),
        "stderr": _error(apart),
        "low": middle - half,
        "high": middle + half,
    }


def _error(values: Sequence[float]) -> float:
    """The standard error of a mean."""
    return stdev(values) / sqrt(len(values))


def _keep(folder: RunFolder, record: Mapping[str, Any]) -> None:
    same = ("benchmark", "shots", "limit")
    before = (read_json(folder.benchmarks) or {}).get("benchmarks", [])
    others = [one for one in before if any(one.get(key) != record[key] for key in same)]
    write_json(folder.benchmarks, {"benchmarks": [*others, record]})
