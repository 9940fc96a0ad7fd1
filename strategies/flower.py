"""Any strategy of Flower as a server rule here: its arithmetic, our cohorts, order of replies and quorum."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore.run import Run

from fedssl.arrays import Arrays
from fedssl.wire import LocalUpdate, Setting, TrainTask, from_record, to_record, write_update
from strategies.base import Federated, Plan

_NODE = 1
_ARRAY, _RECORD = "<array>", "<record>"  # mark what a plain value stands for


class FlowerStrategy(Federated):
    """Let a class of `flwr.serverapp.strategy` configure and aggregate the training of each round.

    Its `configure_train` is shown a grid of as many nodes as the cohort has clients, so that server state (FedAdam's
    moments, a previous model) is set as Flower sets it; which clients take part stays a seeded draw. Flower's
    aggregation holds every reply of the round in memory.

    Args:
        strategy: The strategy, e.g. `flwr.serverapp.strategy.FedAdam`.
        share: Groups of tensors that are exchanged; None exchanges all.
    """

    def __init__(self, strategy: Strategy, share: Collection[str] | None = None) -> None:
        super().__init__(share)
        self.strategy = strategy
        self._template: Message | None = None

    def task(self, current: Arrays, round_number: int, plan: Plan) -> TrainTask:
        """Return the task with the settings that the strategy adds, such as a proximal weight."""
        facade = _Facade(plan.cohort or plan.num_clients)
        messages = list(
            self.strategy.configure_train(round_number, to_record(current), ConfigRecord(), cast(Grid, facade))
        )
        if not messages:
            raise ValueError(f"{type(self.strategy).__name__} asks no client to train")
        self._template = messages[0]
        config = dict(messages[0].content.config_records.get("config", {}))
        config.pop("server-round", None)
        return TrainTask(round_number, plan.rounds, plan.seed, current, cast("dict[str, Setting]", config))

    def merge(self, current: Arrays, updates: Iterator[LocalUpdate], round_number: int) -> dict[str, Any]:
        """Return the strategy's aggregate, in the dtypes of `current`.

        Raises:
            ValueError: The strategy gave no model back, or one with other tensors.
        """
        merged, _ = self.strategy.aggregate_train(round_number, [self._reply(update) for update in updates])
        arrays = {} if merged is None else from_record(merged)
        if set(arrays) != set(current):
            raise ValueError(f"{type(self.strategy).__name__} returned other tensors than it was given")
        return {name: arrays[name].astype(current[name].dtype) for name in current}

    def state(self) -> Mapping[str, Any]:
        """Return what the strategy keeps: its numbers, arrays and records by name.

        Raises:
            ValueError: It keeps something of another kind.
        """
        return {name: _plain(name, value) for name, value in vars(self.strategy).items() if not callable(value)}

    def restore(self, state: Mapping[str, Any], current: Arrays) -> None:
        """Give the strategy back what it kept."""
        for name, value in state.items():
            setattr(self.strategy, name, _rich(value))

    def _reply(self, update: LocalUpdate) -> Message:
        content = write_update(update)
        records = {"arrays": content.array_records["arrays"], "metrics": content.metric_records["metrics"]}
        return Message(RecordDict(cast(Any, records)), reply_to=cast(Message, self._template))


def _plain(name: str, value: Any) -> Any:  # noqa: ANN401 - a strategy may keep anything
    """Return `value` as tensors, numbers, texts, lists and dicts."""
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(np.array(value))}
    if isinstance(value, ArrayRecord):
        return {_RECORD: {key: torch.from_numpy(np.array(array)) for key, array in from_record(value).items()}}
    if isinstance(value, dict):
        return {key: _plain(name, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(name, item) for item in value)
    raise ValueError(f"{name} is a {type(value).__name__}, which no bundle can hold; set checkpoint.every=null")


def _rich(value: Any) -> Any:  # noqa: ANN401
    """Return what `_plain` made plain."""
    if isinstance(value, dict) and _ARRAY in value:
        return value[_ARRAY].numpy()
    if isinstance(value, dict) and _RECORD in value:
        return to_record({key: tensor.numpy() for key, tensor in value[_RECORD].items()})
    if isinstance(value, dict):
        return {key: _rich(item) for key, item in value.items()}
    return type(value)(_rich(item) for item in value) if isinstance(value, list | tuple) else value


class _Facade(Grid):
    """A grid that only says how many nodes there are; nothing is sent through it."""

    def __init__(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes
        self._run = Run.create_empty(1)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type or MessageType.TRAIN, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return range(_NODE, _NODE + self._num_nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise RuntimeError("a Flower strategy may not send messages of its own here")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise RuntimeError("a Flower strategy may not receive messages of its own here")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise RuntimeError("a Flower strategy may not send messages of its own here")
