"""Message in, typed work, message out: what a client does when it is asked."""

from flwr.app import Context, Message

from clients.local_training import LocalTraining
from fedssl.config import RunConfig, build
from fedssl.memory import recall, remember
from fedssl.models import bundle
from fedssl.training.loop import Examples
from fedssl.wire import ClientCard, LocalUpdate, TrainTask, read_task, write_card, write_update
from fedssl.workspace import Workspace, open_workspace


def train(message: Message, context: Context, config: RunConfig) -> Message:
    """Train on this client's examples and answer with the tensors that came."""
    workspace = open_workspace(config)
    task = read_task(message.content)
    partition = _partition(context, workspace)
    update = _update(workspace, task, context, partition)
    private = {name: array for name, array in bundle.arrays(workspace.model, None).items() if name not in task.arrays}
    remember(context, private)
    return Message(write_update(update), reply_to=message)


def query(message: Message, context: Context, config: RunConfig) -> Message:
    """Answer with this client's card."""
    workspace = open_workspace(config)
    partition = _partition(context, workspace)
    card = ClientCard(partition, len(workspace.indices(partition)), str(workspace.device))
    return Message(write_card(card), reply_to=message)


def _update(workspace: Workspace, task: TrainTask, context: Context, partition: int) -> LocalUpdate:
    procedure: LocalTraining = build(workspace.config, "client")
    examples = Examples(workspace.splits.train, workspace.indices(partition), build(workspace.config, "augmentation"))
    model = workspace.model
    bundle.load(model, {**workspace.initial, **recall(context), **task.arrays})
    metrics = procedure.train(model, workspace.objective, examples, task, partition)
    trained = bundle.arrays(model, None)
    return LocalUpdate(partition, {name: trained[name] for name in task.arrays}, len(examples.indices), metrics)


def _partition(context: Context, workspace: Workspace) -> int:
    value = context.node_config.get("partition-id")
    if not isinstance(value, int) or not 0 <= value < workspace.num_clients:
        allowed = f"a whole number from 0 to {workspace.num_clients - 1}"
        raise ValueError(f"node-config partition-id={value}: must be {allowed}")
    return value
