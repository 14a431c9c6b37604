"""How long a service is down after one of its processes was killed or hangs.

    python -m benchmarks.recovery bundles/pico bundles/nano [--json PATH]

Kills the process of each stage in turn, stops one (it hangs), and kills the server itself. The time runs from the
signal until a generation that was sent again and again has given its object from new processes. A stage is loaded
anew while the others work on, as `diffsplat serve` does it; of `reconstruct` the time runs until it is. Exits with 1 if
the service does not come back. The bar is 15 s on a quiet machine of two cores.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsplat_client import Client, DiffSplatError
from diffsplat_client.request import GenerationRequest

from benchmarks.ensemble_overhead import find_repository
from benchmarks.machine import describe_machine

if TYPE_CHECKING:
    from diffsplat.serving.supervisor.supervisor import Supervisor

BAR_S = 15.0
GIVE_UP_S = 300.0
REQUEST = GenerationRequest("a red cube", seed=1, steps=2)


def faults(supervisor: "Supervisor") -> dict[str, Callable[[], None]]:
    """What is done to the service, by name; each finds its process when it is called."""
    from diffsplat.serving.server.processes import find_stubs

    def hit_stage(model: str, number: signal.Signals) -> Callable[[], None]:
        def hit() -> None:
            pid = next(stub.pid for stub in find_stubs(supervisor.server.pid) if stub.model == model)
            os.kill(pid, number)

        return hit

    def hit_server(number: signal.Signals) -> Callable[[], None]:
        return lambda: os.kill(supervisor.server.pid, number)

    models = sorted({stub.model for stub in find_stubs(supervisor.server.pid)})
    return {
        **{f"{model}: SIGKILL": hit_stage(model, signal.SIGKILL) for model in models},
        "denoise: SIGSTOP": hit_stage("denoise", signal.SIGSTOP),
        "server: SIGKILL": hit_server(signal.SIGKILL),
        "server: SIGSEGV": hit_server(signal.SIGSEGV),
        "server: SIGSTOP": hit_server(signal.SIGSTOP),
    }


def healed(supervisor: "Supervisor") -> int:
    """How often the server or one of its stages was replaced."""
    return supervisor.restarts + sum(supervisor.reloads.values())


def measure(supervisor: "Supervisor", fault: Callable[[], None]) -> float:
    """Seconds from the fault until processes were replaced and an object has come back."""
    before = healed(supervisor)
    started_s = time.monotonic()
    fault()
    while time.monotonic() - started_s < GIVE_UP_S:
        if healed(supervisor) > before and supervisor.state == "serving":
            with Client(supervisor.server.grpc_url, timeout_s=GIVE_UP_S) as client:
                try:
                    client.generate(REQUEST)
                except DiffSplatError:
                    pass
                else:
                    return time.monotonic() - started_s
        time.sleep(0.05)
    raise TimeoutError(f"the service did not come back within {GIVE_UP_S:g} s")


def main() -> int:
    """Print one row per fault, and write them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, help="bundle folders")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()

    from diffsplat.serving.supervisor.policy import SupervisorPolicy
    from diffsplat.serving.supervisor.supervisor import Supervisor

    result: dict[str, Any] = {**describe_machine(), "bar_s": BAR_S, "seconds": {}}
    # the faults come in a row: back-off is not what is measured
    policy = SupervisorPolicy(reload_stages=True, restart_delays_s=(0.0,), stable_after_s=0.0)
    for bundle in arguments.bundles:
        rows = result["seconds"][bundle.name] = {}
        with Supervisor(find_repository(bundle), policy=policy) as supervisor:
            for name, fault in faults(supervisor).items():
                rows[name] = round(measure(supervisor, fault), 1)
                print(f"{bundle.name:8} {name:22} {rows[name]:6.1f} s   load {os.getloadavg()[0]:.1f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
