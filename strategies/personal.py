"""Ask every client how the model does on its own held-out examples, and say how the least well served one fares."""

import math

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedssl.arrays import Arrays
from fedssl.errors import RunError
from fedssl.evaluation.personal import client_score_names
from fedssl.wire import EvalTask, Scores, read_scores, write_eval_task
from strategies.cohort import Roster
from strategies.replies import last_line, replies_in_order


def client_scores(grid: Grid, roster: Roster, arrays: Arrays, round_number: int) -> dict[str, float]:
    """Return the scores of the model with `arrays`, over all clients.

    Raises:
        RunError: A client could not answer: a mean over the others would be another number.
    """
    partitions = range(roster.num_clients)
    content = write_eval_task(EvalTask(round_number, arrays))
    messages = [
        Message(content, roster.node_of(partition), MessageType.EVALUATE, group_id=str(round_number))
        for partition in partitions
    ]
    answers = [
        _read(reply, partition, round_number)
        for partition, reply in zip(partitions, replies_in_order(grid, messages), strict=True)
    ]
    total = sum(answer.num_examples for answer in answers)
    scores = {}
    for score in answers[0].values:
        mean, worst = client_score_names(score)
        scores[mean] = sum(answer.values[score] * answer.num_examples for answer in answers) / total
        scores[worst] = min(answer.values[score] for answer in answers)
    return scores


def _read(reply: Message, partition: int, round_number: int) -> Scores:
    where = f"round {round_number}, partition {partition}: evaluation"
    if reply.has_error():
        raise RunError(f"{where}: {last_line(reply.error.reason)}")
    scores = read_scores(reply.content)
    if (scores.partition, scores.round) != (partition, round_number):
        raise RunError(f"{where}: the answer is of partition {scores.partition} to round {scores.round}")
    if scores.num_examples < 1 or not all(math.isfinite(value) for value in scores.values.values()):
        raise RunError(f"{where}: {dict(scores.values)} of {scores.num_examples} examples are no scores")
    return scores
