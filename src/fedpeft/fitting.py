"""Which parts of a plan fit together; what does not is refused, with what to set instead."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedpeft.core.interfaces import Codec, Local, LowRank, Sampler, ServerOptimizer, Stage
from fedpeft.core.packed import BASE_DTYPES
from fedpeft.errors import PlanError, unknown
from fedpeft.exchanges.masking import check_room
from fedpeft.registry import build, find, names

WEIGHTINGS = ("examples", "uniform", "batches")
HEAD_STARTS = ("class_means",)
HEAD_ROWS = ("class_counts",)


def check_values(plan: Any) -> None:
    """Raises PlanError for a value out of range."""
    for key in ("rounds", "cohort", "min_replies", "max_refusals", "threads", "evaluate_every"):
        if getattr(plan, key) < 1:
            raise PlanError(f"{key} must be at least 1, got {getattr(plan, key)}")
    if plan.norm_factor is not None and not plan.norm_factor >= 1:
        raise PlanError(f"norm_factor must be at least 1, got {plan.norm_factor}")
    for key, known in (
        ("weighting", WEIGHTINGS),
        ("base_dtype", BASE_DTYPES),
        ("engine", names("engine")),
    ):
        if getattr(plan, key) not in known:
            raise PlanError(unknown(key, getattr(plan, key), known))
    check_nodes(plan.nodes, plan.deadline)
    check_pace(plan.buffer, staleness=plan.staleness, pace_spread=plan.pace_spread)


def check_parts(plan: Any) -> None:
    """Raises PlanError for parts that do not go together."""
    if plan.personal and plan.local_shares:
        raise PlanError(
            "SCAFFOLD's control variates belong to tensors that travel: leave out `personal`, or "
            "SCAFFOLD"
        )
    if leaking(plan) and plan.engine != "inprocess":
        raise PlanError(
            "local.as_published hands momentum from client to client, one after another, and the "
            "engine "
            f'{plan.engine!r} has no such order: set engine = "inprocess"'
        )
    check_chain(plan.sampler, plan.cohort)
    check_scaffold(plan.local, plan.server)
    check_codecs(plan.stages, plan.uplink, plan.downlink)
    check_low_rank(plan)
    check_sum(plan)
    check_head_start(plan)
    check_head_rows(plan)
    check_vote(plan)
    if plan.buffer is not None:
        check_asynchronous(plan)


def leaking(plan: Any) -> bool:
    """Whether what a client's optimizer remembers goes over to the next client, and to the next
    round."""
    return bool(getattr(plan.local, "as_published", False))


def quantizes(task: Any) -> bool:
    """Whether the base's weights are codes."""
    return getattr(task, "quantize", None) is not None


def shares(local: Local) -> tuple[str, ...]:
    """Prefixes of what a client's correction shares beside the method's tensors."""
    correction = getattr(local, "correction", None)
    return correction.shares if correction is not None else ()


def check_head_start(plan: Any) -> None:
    """Raises PlanError for a start that there is not, or that tells what it must not."""
    if plan.head_start not in (None, *HEAD_STARTS):
        raise PlanError(unknown("head_start", plan.head_start, HEAD_STARTS))
    if plan.head_start and plan.private_part:
        raise PlanError(
            "head_start tells the means of a client's classes without noise: leave it out"
        )
    if plan.head_start and not isinstance(plan.exchange, find("exchange", "fit")):
        raise PlanError(
            "head_start tells the server each client's class means, which sums are to hide: leave "
            "it out"
        )
    if plan.head_start and plan.buffer is not None:
        raise PlanError(
            "head_start comes before the first round, and asynchronous steps have none: leave it "
            "out"
        )


def check_head_rows(plan: Any) -> None:
    """Raises PlanError for rows that there are not, that tell what they must not, or that undo
    another part's work."""
    if plan.head_rows not in (None, *HEAD_ROWS):
        raise PlanError(unknown("head_rows", plan.head_rows, HEAD_ROWS))
    if plan.head_rows and plan.private_part:
        raise PlanError(
            "head_rows tells how many examples of each class a client has, without noise: leave it "
            "out"
        )
    if plan.head_rows and not isinstance(plan.exchange, find("exchange", "fit")):
        raise PlanError(
            "head_rows tells the server each client's class counts, which sums are to hide: leave "
            "it out"
        )
    if plan.head_rows and not isinstance(plan.aggregator, (find("aggregator", "mean"), LowRank)):
        raise PlanError(
            f"head_rows takes a mean of rows, past what {type(plan.aggregator).__name__} keeps "
            "out: leave it out, or "
            'take a mean, such as aggregator = "mean"'
        )


def check_vote(plan: Any) -> None:
    """Raises PlanError for a vote among nothing, on what clients do not have, or that tells what it
    must not."""
    if plan.vote is None:
        if plan.vote_share is not None:
            raise PlanError(
                "vote_share: nobody votes; set `vote` to strengths to choose from, or leave it out"
            )
        return
    if (
        not plan.vote
        or len(set(plan.vote)) < len(plan.vote)
        or not all(0 < x < float("inf") for x in plan.vote)
    ):
        raise PlanError(f"vote must be positive strengths, each once, got {list(plan.vote)}")
    if plan.vote_share is not None and not 0 < plan.vote_share < 1:
        raise PlanError(f"vote_share must be between 0 and 1, got {plan.vote_share}")
    if plan.private_part or not isinstance(plan.exchange, find("exchange", "fit")):
        raise PlanError(
            "a vote tells the server how well models do on each client's examples: leave out `vote`"
        )
    if plan.personal or plan.ranks or plan.local_shares:
        raise PlanError(
            "a vote is on models that all clients have alike: leave out personal, ranks and "
            "SCAFFOLD"
        )
    if plan.buffer is not None:
        raise PlanError(
            "a vote is on a round's merge, and asynchronous steps have no rounds: leave it out"
        )
    if isinstance(plan.aggregator, LowRank) and plan.aggregator.plain:
        raise PlanError(
            f"{type(plan.aggregator).__name__} gives factors that hold only as they are, and a "
            "vote scales them: take "
            'aggregator = "mean" or "fedit", or leave out `vote`'
        )


def check_scaffold(local: Local, server: ServerOptimizer) -> None:
    """Raises PlanError where only one side has control variates, or the optimizer makes them
    meaningless."""
    held, kept = shares(local), server.keeps
    if set(held) != set(kept):
        raise PlanError(
            f"the clients' correction shares {list(held)} beside the trained tensors, the server "
            "keeps "
            f'{list(kept)}: for SCAFFOLD set both local.correction and server to "scaffold"'
        )
    optimizer = getattr(local, "optimizer", None)
    if held and optimizer is not None and not isinstance(optimizer, find("optimizer", "sgd")):
        raise PlanError(
            "SCAFFOLD's control variates are mean gradients, which it tells from what SGD's steps "
            "add up to; "
            f"those of {type(optimizer).__name__} are no sums of gradients: set local.optimizer to "
            '"sgd", or go '
            "without SCAFFOLD"
        )


def check_chain(sampler: Sampler, cohort: int) -> None:
    """Raises PlanError for a chain of several clients at once."""
    if isinstance(sampler, find("sampler", "sequential_chain")) and cohort != 1:
        raise PlanError(
            f"cohort = {cohort}: a chain has one client in each round. Set cohort = 1, and rounds "
            "to the clients times "
            "the passes over them"
        )


def check_codecs(stages: Sequence[Stage], uplink: Codec, downlink: Codec) -> None:
    """Raises PlanError for a downlink that drops entries, or a stage with another codec than the
    uplink's."""
    if getattr(downlink, "sparse", False):
        raise PlanError(
            f"downlink = {downlink}: what goes down are the parameters themselves, not their "
            "changes, and "
            "clients would receive most of them as zero. Use a codec that keeps every entry, such "
            "as "
            '"dense", "float16", "bfloat16" or "int8"'
        )
    for i, stage in enumerate(stages):
        codec = getattr(stage, "codec", uplink)
        if codec is not uplink and codec != uplink:
            raise PlanError(
                f"stages[{i}].codec = {codec} is not the uplink's {uplink}: what "
                f"{type(stage).__name__} "
                "keeps for the next round must be what the uplink drops. Give both the same codec, "
                "or leave out "
                "the stage's in the plan's file"
            )


def check_low_rank(plan: Any) -> None:
    """Raises PlanError for ranks that no factors have or nobody can average, and for what goes
    wrong with factors."""
    aggregator = plan.aggregator
    if plan.ranks is not None:
        _check_ranks(plan.ranks, plan.method, leaking(plan))
        if not isinstance(aggregator, LowRank):
            raise PlanError(
                f"{type(aggregator).__name__} takes tensors of one shape: with ranks set "
                "aggregator to one that knows "
                'low-rank factors, such as "fedit", "flora", "fedex", "flexlora" or "hetlora"'
            )
    if not isinstance(aggregator, LowRank):
        return
    name = type(aggregator).__name__
    if quantizes(plan.task) and isinstance(
        aggregator, tuple(find("aggregator", one) for one in ("flora", "fedex"))
    ):
        raise PlanError(
            f"{name} adds to frozen weights, and task.quantize makes codes of them: leave out one "
            "of both"
        )
    if shares(plan.local):
        raise PlanError(
            f"{name} has no rule for SCAFFOLD's control variates: leave SCAFFOLD out, or take "
            "another"
        )
    if aggregator.plain and plan.server != build("server", "average"):
        raise PlanError(
            f"{name} gives factors that hold only as they are, and {plan.server} would change "
            "them: leave out `server`"
        )
    remembering = getattr(plan.local, "remembers", False) or any(
        stage.remembers for stage in plan.stages
    )
    if aggregator.still and (leaking(plan) or remembering):
        raise PlanError(
            f"with {name} a client trains other tensors in each round, so that nothing can be "
            "remembered of the last: "
            "leave out as_published, restart_schedule = false and error feedback"
        )


def _check_ranks(ranks: tuple[int, ...], method: Any, leaks: bool) -> None:
    most = getattr(method, "rank", None)
    if most is None:
        raise PlanError(
            f"ranks = {list(ranks)}: {type(method).__name__} has no rank; LoRA and its variants "
            "have"
        )
    if not ranks or not all(1 <= rank <= most for rank in ranks):
        raise PlanError(f"ranks = {list(ranks)}: each must be from 1 to method.rank = {most}")
    if leaks:
        raise PlanError(
            "local.as_published hands momentum from client to client, which ranks make unlike: "
            "choose one"
        )


def check_pace(buffer: int | None, **settings: float | None) -> None:
    """Raises PlanError for asynchronous steps that cannot be taken, or settings of theirs without
    them."""
    given = {key: x for key, x in settings.items() if x is not None}
    if buffer is None and given:
        raise PlanError(
            f"{' and '.join(given)}: only asynchronous steps have it; set `buffer`, or leave it out"
        )
    if buffer is not None and buffer < 1:
        raise PlanError(f"buffer must be at least 1, got {buffer}")
    for key, x in given.items():
        if not 0 <= x < float("inf"):
            raise PlanError(f"{key} must not be negative, and be finite, got {x}")


def check_asynchronous(plan: Any) -> None:
    """Raises PlanError for what steps without rounds have no rule for."""
    if isinstance(plan.aggregator, LowRank):
        raise PlanError(
            f"{type(plan.aggregator).__name__} makes factors for all of a round: with `buffer` "
            "take the mean"
        )
    if isinstance(plan.sampler, find("sampler", "sequential_chain")):
        raise PlanError("a chain waits for each client: leave out `buffer`, or the chain")


def check_batchnorm(model: nn.Module, trained: Sequence[str], private: bool) -> None:
    """Raises PlanError for statistics over a batch that do not travel, or under `private`, where
    none has a gradient of its own."""
    for name, module in model.named_modules():
        if private and isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise PlanError(
                f"{name!r} is a BatchNorm: it computes with all examples of a batch, so that none "
                "has a gradient of "
                "its own to clip. Use a model with LayerNorm or GroupNorm, or stages = "
                '["client_dp"]'
            )
        if (
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            and f"{name}.running_mean" not in trained
        ):
            raise PlanError(
                f"{name!r} is a BatchNorm: its running statistics change in training but do not "
                "travel with this "
                'method. Use method = "full" or "scratch", or a model with LayerNorm or GroupNorm'
            )


def check_sum(plan: Any) -> None:
    """Raises PlanError for what a server that sees the sum of the updates alone cannot do."""
    if not plan.exchange.sums:
        return
    if not isinstance(plan.aggregator, find("aggregator", "mean")):
        raise PlanError(
            f"{type(plan.aggregator).__name__} compares the clients' updates, and secure "
            "aggregation shows their sum "
            'alone: set aggregator = "mean", or exchange = "fit"'
        )
    if plan.norm_factor not in (None, float("inf")):
        raise PlanError(
            f"norm_factor = {plan.norm_factor}: how long an update is cannot be seen in a sum: "
            "leave it out, and set "
            "exchange.max_norm, which honest clients hold themselves to"
        )
    if not isinstance(plan.uplink, find("codec", "dense")):
        raise PlanError(
            f"uplink = {plan.uplink}: masked integers are as random as noise, and only a lossless "
            "codec keeps them; "
            'they are rounded already, to exchange.bits: set uplink = "dense"'
        )
    for stage in plan.stages:
        if not isinstance(stage, find("stage", "local_dp")):
            raise PlanError(
                f"{type(stage).__name__} has work to do where each update arrives, or with what "
                "the codec drops, and "
                'secure aggregation leaves neither: leave it out, or exchange = "fit"'
            )
    if plan.ranks or plan.buffer:
        raise PlanError(
            "a secure sum is of one round's updates, all of one layout: leave out `ranks` and "
            "`buffer`"
        )
    if plan.local_shares:
        raise PlanError(
            f"{list(plan.local_shares)} are not of the updates' size: leave SCAFFOLD out of a "
            "secure sum"
        )
    _check_crowd(plan)


def _check_crowd(plan: Any) -> None:
    """Raises PlanError for a threshold that two crowds have, keys that are not the nodes', or
    weights too large."""
    exchange = plan.exchange
    if not plan.cohort < 2 * exchange.threshold <= 2 * plan.cohort:
        raise PlanError(
            f"exchange.threshold = {exchange.threshold} must be more than half of cohort = "
            f"{plan.cohort}, so that no "
            "two groups of clients can tell both secrets of another, and at most all; two thirds "
            "are usual"
        )
    if plan.nodes and exchange.signers and (odd := set(plan.nodes) ^ set(exchange.signers)):
        raise PlanError(
            "nodes and exchange.keys must name the same clients; only one of them has "
            f"{sorted(odd)}"
        )
    if plan.weighting != "uniform" and exchange.max_weight == 1:
        raise PlanError(
            f'weighting = "{plan.weighting}": set exchange.max_weight to the most examples that a '
            "client has, from "
            'which the rounding follows, or weighting = "uniform"'
        )
    check_room(exchange.bits, plan.cohort, exchange.limit, exchange.max_weight)


def check_nodes(nodes: Sequence[str] | None, deadline: float | None) -> None:
    """Raises PlanError for nodes that are not names, each once, or a deadline that is none."""
    if nodes is not None and (not nodes or len(set(nodes)) < len(nodes)):
        raise PlanError(f"nodes must be names, each once, got {list(nodes)}")
    if deadline is not None and not 0 < deadline < float("inf"):
        raise PlanError(f"deadline must be a positive number of seconds, got {deadline}")
