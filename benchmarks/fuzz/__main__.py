"""Random requests, right and wrong in every way, in one process and against a running service.

    python -m benchmarks.fuzz bundles/pico [--inputs 20000] [--seed 0] [--json PATH]

Half of the inputs go to the code that reads them, half over connections to a service with its edge and the HTTP front.
Every input must be taken, or be refused with a reason that is not the service's fault: no error of type INTERNAL, no
exception, no call that does not end, no process that ends. Afterwards the service must be idle, must not have been
restarted, and must give the object that it gave before. Exits with 1 otherwise, and prints the smallest input that
fails.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from diffsplat_client.client import Client
from diffsplat_client.request import GenerationRequest

from benchmarks.ensemble_overhead import find_repository
from benchmarks.fuzz import inputs
from benchmarks.fuzz.checks import CHECKS, Check, stages_of
from benchmarks.fuzz.explore import explore
from benchmarks.fuzz.served import served
from benchmarks.machine import describe_machine

GOOD = GenerationRequest("a red cube", seed=1, steps=4)
SETTLE_S = 60.0


def main() -> int:
    """Fuzz, print, and write as JSON when asked; 1 when anything failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", type=Path, metavar="BUNDLE_OR_REPOSITORY")
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()

    from diffsplat.pipeline import Pipeline
    from diffsplat.serving.edge.service import Service

    repository = find_repository(args.path)
    with Service(repository, http_port=0) as service:
        assert service.http_url is not None
        with served(service.grpc_url, service.http_url) as live, Client(service.grpc_url) as client:
            over_the_wire = {
                "served: messages": Check(inputs.messages(), live.message),
                "served: damaged messages": Check(inputs.damaged(), live.message),
                "served: bodies of HTTP": Check(inputs.json_bodies(), live.http_body),
                "served: garbage on both ports": Check(inputs.garbage, live.garbage),
            }
            in_process = {**CHECKS, "first stages": Check(inputs.messages(), stages_of(Pipeline.load(repository)))}
            expected = client.generate(GOOD).cloud.to_array()
            rows: dict[str, dict[str, int]] = {}
            failures: list[str] = []
            started_s = time.monotonic()
            for group in (in_process, over_the_wire):
                for name, check in group.items():
                    outcomes, failure = explore(check, math.ceil(args.inputs / 2 / len(group)), args.seed)
                    rows[name] = dict(outcomes)
                    failures += [f"{name}: {failure}"] if failure else []
                    print(_row(name, outcomes, failure), flush=True)
            seconds = time.monotonic() - started_s
            failures += _left(service, np.array_equal(expected, client.generate(GOOD).cloud.to_array()))
    total = sum(sum(outcomes.values()) for outcomes in rows.values())
    print(f"{total} inputs in {seconds:.0f} s")
    print("\n".join(failures) or "no hang, no INTERNAL, no crash")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {**describe_machine(), "inputs": total, "seconds": round(seconds, 1)}
        args.json.write_text(json.dumps({**record, "outcomes": rows, "failures": failures}, indent=2) + "\n")
    return int(bool(failures))


def _row(name: str, outcomes: Counter[str], failure: str) -> str:
    counts = "   ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
    return f"{name:32}{sum(outcomes.values()):>7}   {counts}{'   FAILED' if failure else ''}"


def _left(service: Any, same_object: bool) -> list[str]:
    """What is wrong with the service after all that."""
    deadline_s = time.monotonic() + SETTLE_S
    while service.edge.busy and time.monotonic() < deadline_s:
        time.sleep(0.1)
    faults = {
        "requests are left in the edge": service.edge.busy,
        f"the server was restarted {service.supervisor.restarts} times": service.supervisor.restarts > 0,
        "the object is another one than before": not same_object,
    }
    return [fault for fault, there in faults.items() if there]


if __name__ == "__main__":
    sys.exit(main())
