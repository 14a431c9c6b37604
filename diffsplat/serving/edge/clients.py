"""Who the clients are, and what each of them has running."""

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

from diffsplat.serving.edge.admission import RefusedError
from diffsplat.serving.edge.jobs import Job
from diffsplat.serving.edge.outbox import ByteBudget


@dataclass(frozen=True)
class ClientLimits:
    """What one client may have at a time.

    Attributes:
        max_requests: that have not ended, stopped ones included.
        max_request_bytes: of one message.
        max_unread_bytes: of answers that it has not read yet; a single one may be larger.
    """

    max_requests: int = 128
    max_request_bytes: int = 64 * 2**20
    max_unread_bytes: int = 128 * 2**20


@dataclass
class Client:
    """One client.

    Attributes:
        unread: bytes that wait for it.
        unread_answers: that it has not read to the end.
        jobs: its requests that have not ended.
    """

    name: str
    limits: ClientLimits
    unread: ByteBudget
    unread_answers: int = 0
    jobs: list[Job] = field(default_factory=list)

    def check_room(self, places: int) -> None:
        """RefusedError if it would have more requests than it may have."""
        taken = sum(job.inference.places for job in self.jobs)
        if taken + places > self.limits.max_requests:
            raise RefusedError("UNAVAILABLE", f"{taken} requests of this client are running: try again later")


class Clients:
    """All clients that have something running."""

    def __init__(self, limits: ClientLimits) -> None:
        self.limits = limits
        self._clients: weakref.WeakValueDictionary[str, Client] = weakref.WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def jobs(self) -> list[Job]:
        """Requests of all clients that have not ended."""
        return [job for client in list(self._clients.values()) for job in client.jobs]

    @property
    def active(self) -> int:
        """Clients with a request that has not ended."""
        return sum(bool(client.jobs) for client in self._clients.values())

    @property
    def unread_bytes(self) -> int:
        """Bytes that wait for their readers."""
        return sum(client.unread.used for client in self._clients.values())

    @property
    def busy(self) -> bool:
        """Whether a request is running, or an answer has not been read to its end."""
        return bool(self._tasks) or any(client.unread_answers for client in self._clients.values())

    def get(self, name: str) -> Client:
        """A client by its name."""
        client = self._clients.get(name)
        if client is None:
            self._clients[name] = client = Client(name, self.limits, ByteBudget(self.limits.max_unread_bytes))
        return client

    def start(self, client: Client, job: Job, at_end: Callable[[], None]) -> None:
        """Run a request to its end, whether or not anybody reads it; then call `at_end`."""
        client.jobs.append(job)
        task = asyncio.create_task(job.run())
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            client.jobs.remove(job)
            at_end()

        task.add_done_callback(ended)

    async def close(self) -> None:
        """End what is running, without a word to Triton."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
