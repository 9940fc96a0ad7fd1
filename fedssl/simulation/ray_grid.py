"""The Ray grid: clients on worker processes that keep their model shell and their decoded data."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedssl.simulation.grid import ClientFailed, SimulationGrid, answer, identify, node_context
from fedssl.simulation.parcel import Parcel, pack, unpack, without_content

MakeApp = Callable[[], ClientApp]
_Answer = tuple[Message, Parcel | None, Parcel | None]


class _Worker:
    """One process; runs clients one after the other."""

    def __init__(self, make_app: MakeApp, num_clients: int) -> None:
        identify()
        self._app = make_app()
        self._num_clients = num_clients

    def run(self, shell: Message, content: Parcel, state: Parcel | None) -> _Answer:
        """Return the reply without content, its content, and what the client keeps."""
        message = Message(unpack(content), metadata=shell.metadata)  # type: ignore[call-overload]
        kept = RecordDict() if state is None else unpack(state)
        context = node_context(message.metadata.dst_node_id, self._num_clients, kept)
        reply = answer(self._app, message, context)
        if reply.has_error():
            return reply, None, state
        return without_content(reply), pack(reply.content), pack(context.state)


@dataclass(slots=True)
class _Job:
    message: Message
    worker: Any
    state: Any


class RayGrid(SimulationGrid):
    """Clients on `num_workers` Ray actors; a lost actor is replaced and its client run again.

    Args:
        make_app: Makes the client; travels to every worker.
        num_clients: Nodes on the grid.
        num_workers: Worker processes.
        threads_per_client: Cores a worker claims.
        num_gpus_per_client: Share of a GPU a worker claims.
        address: A Ray cluster ("auto"), or None for a private one on this machine.
        max_retries: How often a client is run again after its worker died.
    """

    def __init__(
        self,
        make_app: MakeApp,
        num_clients: int,
        *,
        num_workers: int,
        threads_per_client: int = 1,
        num_gpus_per_client: float = 0.0,
        address: str | None = None,
        max_retries: int = 1,
    ) -> None:
        super().__init__(num_clients)
        _connect(address, num_workers * threads_per_client)
        options = {"num_cpus": threads_per_client, "num_gpus": num_gpus_per_client}
        self._remote = ray.remote(_Worker).options(**options)
        self._make_app = ray.put(make_app)
        self._idle = [self._worker() for _ in range(num_workers)]
        self._running: dict[Any, _Job] = {}
        self._states: dict[int, Any] = {}
        self._retries: dict[str, int] = {}
        self._max_retries = max_retries
        self._shipped: tuple[RecordDict, Any] | None = None

    def advance(self) -> list[Message]:
        """Keep every worker busy until one client is done."""
        while True:
            while self._queue and self._idle:
                self._submit(self._queue.popleft(), self._idle.pop(0))
            done, _ = ray.wait(list(self._running), num_returns=1)
            reply = self._collect(done[0])
            if reply is not None:
                return [reply]

    def close(self) -> None:
        """End the workers and leave the cluster."""
        ray.shutdown()

    def _worker(self) -> Any:  # noqa: ANN401 - Ray's handles have no static type
        return self._remote.remote(self._make_app, self._num_clients)

    def _submit(self, message: Message, worker: Any) -> None:  # noqa: ANN401
        content = message.content
        if self._shipped is None or self._shipped[0] is not content:
            self._shipped = (content, ray.put(pack(content)))
        state = self._states.get(message.metadata.dst_node_id)
        run = worker.run.options(num_returns=3)
        shell, parcel, new_state = run.remote(without_content(message), self._shipped[1], state)
        self._running[shell] = _Job(message, worker, (parcel, new_state))

    def _collect(self, shell: Any) -> Message | None:  # noqa: ANN401
        job = self._running.pop(shell)
        try:
            reply: Message = ray.get(shell)
        except ray.exceptions.RayActorError as error:
            self._idle.append(self._worker())
            return self._retry(job.message, error)
        self._idle.append(job.worker)
        parcel, new_state = job.state
        if reply.has_error():
            return reply
        self._states[job.message.metadata.dst_node_id] = new_state
        reply.content = unpack(ray.get(parcel))
        return reply

    def _retry(self, message: Message, error: Exception) -> Message | None:
        name = message.metadata.message_id
        self._retries[name] = self._retries.get(name, 0) + 1
        if self._retries[name] <= self._max_retries:
            self._queue.appendleft(message)
            return None
        reason = f"its worker died {self._retries[name]} times, engine.max_retries={self._max_retries}: {error}"
        return Message(Error(ClientFailed, " ".join(reason.split())), reply_to=message)


def _connect(address: str | None, num_cpus: int) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    common = {"configure_logging": True, "logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        ray.init(num_cpus=num_cpus, include_dashboard=False, **common)
    else:
        ray.init(address=address, **common)
