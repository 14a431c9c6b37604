"""Runs a check on many inputs of hypothesis."""

from collections import Counter

from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.fuzz.checks import Check


def explore(check: Check, count: int, random_seed: int = 0) -> tuple[Counter[str], str]:
    """What became of `count` inputs, and the smallest one that failed with its error; the same seed, the same inputs.

    Stops at the first failure, and makes it small.
    """
    outcomes: Counter[str] = Counter()

    @seed(random_seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
    )
    @given(check.inputs)
    def run(data: object) -> None:
        try:
            outcomes[check.run(data)] += 1
        except Exception as error:
            outcomes["failed"] += 1
            error.add_note(f"input: {data!r}")
            raise

    try:
        run()
    except Exception as error:  # whatever it is, it is reported
        return outcomes, f"{type(error).__name__}: {error}\n" + "\n".join(getattr(error, "__notes__", ()))
    return outcomes, ""
