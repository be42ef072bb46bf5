"""fedpeft itself: all of a round, with its bytes, checks, mean and the server's step."""

from benchmarks.racing.course import Course, Track
from benchmarks.racing.running import CHOSE
from benchmarks.racing.venvs import processors
from benchmarks.racing.works import SMALL, WORKS, ours
from fedpeft import federate, open_site, start
from fedpeft.engines.auto import Auto
from fedpeft.registry import find


def run(course: Course, track: Track, name: str, variant: str) -> None:
    plan, kind = ours(WORKS.get(name, SMALL), len(course.rounds), variant, processors())
    site = open_site(plan)
    engine = find("engine", kind)(site)
    if isinstance(engine, Auto):
        print(f"{CHOSE}{engine.choice.engine}: {engine.choice.reason}", flush=True)
    state = start(plan, site.params())
    rounds = federate(plan, engine, state)
    while track.go():
        state, ledger = next(rounds)
        assert len(ledger.up) == plan.cohort, ledger.failed
        track.done()
    engine.close()
    track.end(state.params)
