"""The Ray grid: clients on worker processes that keep their model shell and their decoded data."""

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from flwr.app import Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from fedssl.config import Engine
from fedssl.errors import ConfigError
from fedssl.simulation.gpu_share import GpuUse, limit_memory, measure, workers_per_gpu
from fedssl.simulation.grid import SimulationGrid, answer, failure, identify, may_remember, node_context, round_of
from fedssl.simulation.memories import Memories
from fedssl.simulation.parcel import Parcel, pack, unpack, without_content

LOGGER = logging.getLogger("fedssl")
MakeApp = Callable[[], ClientApp]
_Answer = tuple[tuple[Message, bool], Parcel | None, Parcel | None]
_RESULTS_A_WORKER = 3  # in work, or waiting to be merged: without a bound memory would grow with the cohort
# Ray frees merged results once a second or by the hundred: by then the next ones have taken fresh, cold memory.
_FREE_AT_ONCE = {"free_objects_batch_size": 1, "free_objects_period_milliseconds": 10}
_STARTS = 3  # of a worker in a row, before the run gives up
_LOST = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.ObjectLostError)


class _Worker:
    """One process; runs clients one after the other."""

    def __init__(self, make_app: MakeApp, num_clients: int, gpu_share: float) -> None:
        identify()
        if gpu_share > 0:
            limit_memory(gpu_share)
        self._app = make_app()
        self._num_clients = num_clients
        self._seconds = 0.0

    def ready(self) -> None:
        """Answer once the process is there."""

    def run(self, shell: Message, content: Parcel, state: Parcel | None) -> _Answer:
        """Return the reply without content and whether the client keeps anything, its content, and what is kept."""
        begun = time.monotonic()
        message = Message(unpack(content), metadata=shell.metadata)  # type: ignore[call-overload]
        kept = RecordDict() if state is None else unpack(state)
        context = node_context(message.metadata.dst_node_id, self._num_clients, kept)
        reply = answer(self._app, message, context)
        self._seconds = time.monotonic() - begun
        state_after = pack(context.state) if context.state and may_remember(message) else None
        keeps = state_after is not None
        if reply.has_error():
            return (reply, keeps), None, state_after
        return (without_content(reply), keeps), pack(reply.content), state_after

    def gpu_use(self) -> GpuUse:
        """Return what the last client took of the GPU."""
        return measure(self._seconds)


@dataclass(slots=True)
class _Job:
    message: Message
    parcel: Any
    state: Any


@dataclass(slots=True)
class _Seat:
    """A worker with the jobs it was given: the first is running, since `since`; another may wait behind it."""

    actor: Any
    jobs: dict[Any, _Job] = field(default_factory=dict)
    since: float = 0.0


class RayGrid(SimulationGrid):
    """Clients on Ray actors; a lost actor is replaced and its client run again on the same seed.

    Args:
        make_app: Makes the client; travels to every worker.
        num_clients: Nodes on the grid.
        engine: Workers, their share of GPUs, retries, time limit and schedule. "longest_first" works on messages in the
            order in which they are sent and merged; "by_partition" goes by partition, and may hold many results
            until it is their turn to be merged.
    """

    def __init__(self, make_app: MakeApp, num_clients: int, engine: Engine) -> None:
        super().__init__(num_clients, Memories(lambda state: unpack(ray.get(state)), leave_on_disk=False))
        threads, wanted = engine.threads_per_client, engine.num_workers
        cores = _connect(engine.address, None if wanted is None else wanted * threads)
        self._engine = engine
        self._most_workers = wanted or max(1, cores // threads)
        self._probing = engine.num_gpus_per_client == "auto"
        self._gpu_share = 1.0 if engine.num_gpus_per_client == "auto" else engine.num_gpus_per_client
        self._make_app = ray.put(make_app)
        self._starting: dict[Any, Any] = {}
        self._failed_starts = 0
        self._seats: list[_Seat] = []
        self._running: dict[Any, _Seat] = {}
        self._retries: dict[str, int] = {}
        self._shipped: tuple[RecordDict, Any] | None = None
        self._start(self._num_workers())

    def scheduled(self, messages: list[Message]) -> list[Message]:
        """Return messages in the order in which they are worked on."""
        if self._engine.schedule == "longest_first":
            return messages
        return sorted(messages, key=lambda message: message.metadata.dst_node_id)

    def advance(self) -> list[Message]:
        """Keep every worker busy until at least one client is done."""
        while True:
            self._fill()
            waiting = [*self._running, *self._starting]
            done, _ = ray.wait(waiting, num_returns=1, timeout=self._patience())
            replies = self._overdue() if not done else self._news(done[0])
            if replies:
                return replies

    def close(self) -> None:
        """End the workers and leave the cluster."""
        ray.shutdown()

    def _num_workers(self) -> int:
        if self._probing:
            return 1
        if self._gpu_share == 0:
            return self._most_workers
        gpus = ray.cluster_resources().get("GPU", 0)
        if gpus < self._gpu_share:
            share = self._engine.num_gpus_per_client
            raise ConfigError(f"engine.num_gpus_per_client={share}: must be at most the {gpus:g} GPUs that Ray sees")
        return max(1, min(self._most_workers, int(gpus / self._gpu_share + 1e-9)))

    def _start(self, number: int) -> None:
        options = {"num_cpus": self._engine.threads_per_client, "num_gpus": self._gpu_share}
        for _ in range(number):
            actor = ray.remote(_Worker).options(**options).remote(self._make_app, self._num_clients, self._gpu_share)
            self._starting[actor.ready.remote()] = actor

    def _fill(self) -> None:
        """Give out jobs: to idle workers first, then one ahead to each, while results do not pile up."""
        room = len(self._seats) * _RESULTS_A_WORKER if self._engine.schedule == "longest_first" else math.inf
        for depth in (0, 1):
            for seat in self._seats:
                ahead = depth == 0 or (len(self._queue) > len(self._seats) and not self._probing)
                if len(seat.jobs) > depth or not self._queue or not ahead:
                    continue
                if not self._running or len(self._running) + len(self._replies) < room:
                    self._submit(self._queue.popleft(), seat)

    def _submit(self, message: Message, seat: _Seat) -> None:
        content = message.content
        if self._shipped is None or self._shipped[0] is not content:
            self._shipped = (content, ray.put(pack(content)))
        state = self.memories.get(message.metadata.dst_node_id - 1)
        if isinstance(state, RecordDict):
            state = ray.put(pack(state))
        run = seat.actor.run.options(num_returns=3)
        shell, parcel, new_state = run.remote(without_content(message), self._shipped[1], state)
        if not seat.jobs:
            seat.since = time.monotonic()
        seat.jobs[shell] = _Job(message, parcel, new_state)
        self._running[shell] = seat

    def _patience(self) -> float | None:
        busy = [seat.since for seat in self._seats if seat.jobs]
        if self._engine.client_timeout_seconds is None or not busy:
            return None
        return max(0.0, min(busy) + self._engine.client_timeout_seconds - time.monotonic())

    def _overdue(self) -> list[Message]:
        """End the workers whose client takes too long."""
        now, limit = time.monotonic(), self._engine.client_timeout_seconds or math.inf
        return [self._end(seat, limit) for seat in list(self._seats) if seat.jobs and now - seat.since >= limit]

    def _end(self, seat: _Seat, limit: float) -> Message:
        ray.kill(seat.actor)
        return failure(self._vacate(seat).message, f"no answer after engine.client_timeout_seconds={limit:g}")

    def _news(self, ref: Any) -> list[Message]:  # noqa: ANN401 - Ray's references have no static type
        if ref in self._starting:
            self._seat(ref)
            return []
        try:
            return [self._finished(ref)]
        except _LOST as error:
            seat = self._running[ref]
            replies = self._finished_before_the_loss(seat)
            return replies + self._retry(self._vacate(seat).message, error)

    def _finished(self, ref: Any) -> Message:  # noqa: ANN401
        """Return the reply of a job that is done; a job whose worker was lost raises and stays as it is."""
        seat, keeps = self._running[ref], False
        reply: Message
        try:
            reply, keeps = ray.get(ref)
            if not reply.has_error():
                reply.content = unpack(ray.get(seat.jobs[ref].parcel))
        except ray.exceptions.RayTaskError as error:
            reply = failure(seat.jobs[ref].message, str(error))
        job = self._release(ref)
        if keeps:  # a reference: its bytes stay in the object store
            self.memories.put(job.message.metadata.dst_node_id - 1, round_of(job.message), job.state)
        if self._probing and job.message.metadata.message_type == MessageType.TRAIN:
            self._share_gpus(seat)
        return reply

    def _finished_before_the_loss(self, seat: _Seat) -> list[Message]:
        """Return the replies of a lost worker's jobs that were done: the first that is not was being worked on."""
        replies = []
        for ref in list(seat.jobs):
            try:
                replies.append(self._finished(ref))
            except _LOST:
                break
        return replies

    def _release(self, ref: Any) -> _Job:  # noqa: ANN401
        seat = self._running.pop(ref)
        seat.since = time.monotonic()
        return seat.jobs.pop(ref)

    def _vacate(self, seat: _Seat) -> _Job:
        """Replace a worker that is gone, queue again what waited behind its job, and return that job."""
        first, *behind = seat.jobs.values()
        for ref in seat.jobs:
            del self._running[ref]
        self._seats.remove(seat)
        self._queue.extendleft(job.message for job in reversed(behind))
        self._start(1)
        return first

    def _seat(self, ref: Any) -> None:  # noqa: ANN401
        actor = self._starting.pop(ref)
        try:
            ray.get(ref)
        except _LOST as error:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise RuntimeError(f"{_STARTS} workers in a row could not start: {error}") from error
            self._start(1)
            return
        self._failed_starts = 0
        self._seats.append(_Seat(actor))

    def _retry(self, message: Message, error: Exception) -> list[Message]:
        name = message.metadata.message_id
        self._retries[name] = self._retries.get(name, 0) + 1
        client = f"round {round_of(message)}, partition {message.metadata.dst_node_id - 1}"
        if self._retries[name] <= self._engine.max_retries:
            LOGGER.warning("%s: its worker was lost; a new one runs it again", client)
            self._queue.appendleft(message)
            return []
        cause = " ".join(str(error).split())
        reason = f"its worker died {self._retries[name]} times, engine.max_retries={self._engine.max_retries}: {cause}"
        return [failure(message, reason)]

    def _share_gpus(self, seat: _Seat) -> None:
        """Replace the worker that was measured by as many as fit on each GPU."""
        use: GpuUse = ray.get(seat.actor.gpu_use.remote())
        gpus = int(ray.cluster_resources().get("GPU", 1))
        number = workers_per_gpu(use, most=max(1, self._most_workers // gpus))
        LOGGER.info("%d workers a GPU: a client takes %.1f s and %d MiB of it",
                    number, use.seconds, use.peak_bytes >> 20)  # fmt: skip
        self._probing, self._gpu_share = False, 1.0 / number
        ray.kill(seat.actor)
        self._seats.remove(seat)
        self._start(number * gpus)


def _connect(address: str | None, num_cpus: int | None) -> int:
    """Join or start Ray and return the cores it has."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    common = {"configure_logging": True, "logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        cores = num_cpus or len(os.sched_getaffinity(0))
        ray.init(num_cpus=cores, include_dashboard=False, _system_config=_FREE_AT_ONCE, **common)
    else:
        try:
            ray.init(address=address, **common)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"engine.address={address}: no Ray cluster answers there") from error
    return int(ray.cluster_resources().get("CPU", 1))
