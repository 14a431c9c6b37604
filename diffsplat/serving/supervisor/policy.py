"""When a supervisor takes a server for dead, and how it restarts it."""

from dataclasses import dataclass, field

from diffsplat.serving.server.processes import machine_memory

MEMORY_SHARE = 0.8  # default limit of the server's memory, as a share of the machine's


@dataclass(frozen=True)
class SupervisorPolicy:
    """When a server counts as down, and how it is restarted.

    Attributes:
        tick_s: time between two looks at the processes.
        probe_interval_s: time between the answer to a probe and the next one.
        hang_after_s: a model hangs if a probe or a request waits this long and the model's process uses no CPU.
        stall_limit_s: a model hangs if a probe waits this long and no call has ended, whatever the process does.
        memory_limit_bytes: of the server with all its models; above it the server is restarted when it is idle.
        memory_interval_s: time between two looks at the memory and at `max_reloads`.
        memory_patience_s: above one of these limits this long, new requests are refused until the server is idle.
        drain_timeout_s: how long the requests in flight may take to finish before a stop or a clean restart.
        reload_stages: a stage that is down is loaded anew, and the others work on. Its requests never end: whoever sent
            them must send them again, as the edge does. Otherwise the whole server is restarted, which ends them.
        max_reloads: after so many the server is restarted when it is idle: of each process that was replaced, Triton
            keeps a process to be reaped and a file of 1 MB in /dev/shm.
        restart_delays_s: delays of the first, second, ... restart in a row; the last one is used from then on.
        stable_after_s: a server that lived this long starts with the first delay again; a stage that is down again
            sooner after it was loaded anew takes the whole server with it.
    """

    tick_s: float = 0.25
    probe_interval_s: float = 2.0
    hang_after_s: float = 5.0
    stall_limit_s: float = 300.0
    memory_limit_bytes: int = field(default_factory=lambda: int(MEMORY_SHARE * machine_memory()))
    memory_interval_s: float = 5.0
    memory_patience_s: float = 60.0
    drain_timeout_s: float = 60.0
    reload_stages: bool = False
    max_reloads: int = 8
    restart_delays_s: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
    stable_after_s: float = 60.0
