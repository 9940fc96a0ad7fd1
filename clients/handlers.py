"""Message in, typed work, message out: what a client does when it is asked."""

from typing import cast

from flwr.app import Context, Message

from clients.local_training import LocalTraining, Outcome, Work
from clients.own_ledger import charge_self
from fedssl.arrays import not_finite
from fedssl.config import RunConfig, build
from fedssl.evaluation.personal import PersonalEvaluation
from fedssl.memory import Memory, recall, remember
from fedssl.models import bundle
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import UNKNOWN
from fedssl.privacy.example import Sampled
from fedssl.privacy.mechanism import Mechanism
from fedssl.privacy.noise import NoiseKey
from fedssl.privacy.planted import EVIDENCE, EXTRA, Planted
from fedssl.training.loop import Examples
from fedssl.training.private_loop import PrivateSteps
from fedssl.wire import (
    NUM_LABELLED,
    ClientCard,
    LocalUpdate,
    Scores,
    TrainTask,
    read_eval_task,
    read_task,
    write_card,
    write_scores,
    write_update,
)
from fedssl.workspace import Workspace, open_workspace


def train(message: Message, context: Context, config: RunConfig) -> Message:
    """Train on this client's examples, answer with the tensors that came, and remember the others.

    Raises:
        FloatingPointError: The training diverged, and the answer is not noised as a whole. In any case the client
            remembers nothing of this round, but that it was charged for it.
        PrivacyError: The round would exceed the budget of the run.
    """
    workspace = open_workspace(config)
    task = read_task(message.content)
    partition = _partition(context, workspace)
    memory = recall(context)
    key = _noise_key(workspace, task)
    planted = None if key is None else workspace.planted(partition)
    if workspace.mechanism is not None and key is not None:
        charge_self(context, workspace.mechanism, workspace.terms, partition, task.round, key)
    try:
        outcome = _work(workspace, task, memory, partition, key, planted)
        trained = bundle.arrays(workspace.model, None, copy=False)
        if name := not_finite(trained):
            raise FloatingPointError(f"{name} is not finite after training")
    except FloatingPointError:
        if key is None or isinstance(workspace.mechanism, Sampled):
            raise
        # the message is noised as a whole: a missing one would tell something of the data
        same = _protected(workspace, LocalUpdate(partition, task.round, task.arrays, 0, {}), task, key)
        return Message(write_update(same), reply_to=message)
    shared = {name: trained.pop(name) for name in task.arrays}
    labels = workspace.labels(partition)
    num_examples = len(labels) if outcome.num_examples is None else outcome.num_examples
    metrics = {**outcome.metrics, NUM_LABELLED: float((labels != UNKNOWN).sum())}
    update = LocalUpdate(partition, task.round, shared, num_examples, metrics, outcome.sent)
    if workspace.mechanism is not None and key is not None:
        update = _protected(workspace, update, task, key, planted)
    reply = Message(write_update(update), reply_to=message)
    remember(context, Memory(trained, outcome.kept))
    return reply


def _noise_key(workspace: Workspace, task: TrainTask) -> NoiseKey | None:
    """Return what this client draws the noise of a round from; None where it adds none.

    A secure key is of one round: under a kept one, a server that asks for the same round of two models could subtract
    the noise.
    """
    mechanism = workspace.mechanism
    if mechanism is None or not mechanism.in_client:
        return None
    return NoiseKey.from_seed(task.seed) if mechanism.noise == "reproducible" else NoiseKey.fresh()


def _protected(
    workspace: Workspace, update: LocalUpdate, task: TrainTask, key: NoiseKey, planted: Planted | None = None
) -> LocalUpdate:
    """Return what may leave: no number but the public count, no array beside the model, no statistics.

    What the noised steps show of planted canaries may leave as the steps themselves may.
    """
    mechanism = cast(Mechanism, workspace.mechanism)
    buffers = bundle.buffer_names(workspace.model)
    path = (update.partition, update.round)
    arrays = mechanism.sent(task.arrays, update.arrays, buffers, workspace.terms, key, path)
    metrics = update.metrics if mechanism.metrics == "unprotected" else {}
    extras = {} if planted is None else {EXTRA: {EVIDENCE: planted.taken()}}
    return LocalUpdate(*path, arrays, len(workspace.indices(update.partition)), metrics, extras)


def evaluate(message: Message, context: Context, config: RunConfig) -> Message:
    """Answer how the model that came, with this client's private tensors in place, does on its held-out examples."""
    workspace = open_workspace(config)
    task, memory = read_eval_task(message.content), recall(context)
    partition = _partition(context, workspace)
    bundle.load(workspace.model, {**workspace.initial, **(memory.tensors if memory else {}), **task.arrays})
    train, held_out = workspace.indices(partition), workspace.held_out(partition)
    evaluation: PersonalEvaluation = build(config, "client_evaluation")
    encoder = cast(Encoder, workspace.model["backbone"])
    values = evaluation(encoder, workspace.splits.train, train, held_out, workspace.device)
    return Message(write_scores(Scores(partition, task.round, len(held_out), values)), reply_to=message)


def query(message: Message, context: Context, config: RunConfig) -> Message:
    """Answer with this client's card."""
    workspace = open_workspace(config)
    partition = _partition(context, workspace)
    labels = workspace.labels(partition)
    card = ClientCard(partition, len(labels), int((labels != UNKNOWN).sum()), str(workspace.device))
    return Message(write_card(card), reply_to=message)


def _work(
    workspace: Workspace,
    task: TrainTask,
    memory: Memory | None,
    partition: int,
    key: NoiseKey | None,
    planted: Planted | None,
) -> Outcome:
    """Train the model shell in place."""
    procedure: LocalTraining = workspace.procedure
    train, indices = workspace.examples_of(partition), workspace.indices(partition)
    truth = None if workspace.parts is None else train.labels[indices]
    examples = Examples(train, indices, workspace.augmentation, workspace.labels(partition), truth)
    bundle.load(workspace.model, procedure.begin(workspace.initial, memory, task))
    private = None
    if isinstance(workspace.mechanism, Sampled) and key is not None:
        private = PrivateSteps(workspace.mechanism, workspace.terms, key, workspace.whole(partition), planted)
    return procedure.train(Work(workspace.model, workspace.objective, examples, task, partition, memory, private))


def _partition(context: Context, workspace: Workspace) -> int:
    value = context.node_config.get("partition-id")
    if not isinstance(value, int) or not 0 <= value < workspace.num_clients:
        allowed = f"a whole number from 0 to {workspace.num_clients - 1}"
        raise ValueError(f"node-config partition-id={value}: must be {allowed}")
    return value
