"""FedIRM, client side: take the federation's relation matrix along, and send one's own (Liu et al. 2021)."""

from dataclasses import dataclass, replace

from clients.local_training import LocalTraining, Outcome, Work
from fedssl.models import bundle
from fedssl.objectives.fedirm import RELATIONS, FedIRM

CLASSES = "classes"


@dataclass(frozen=True)
class FedIRMTraining(LocalTraining):
    """Local training with the relation matrix that came; for objective=fedirm and strategy=fedirm.

    What leaves a client with labels beside the model is a softened mean prediction for each class that it has labelled
    examples of, and which classes these are.
    """

    def train(self, work: Work) -> Outcome:
        """Train the model in place, and send the relation matrix of the labelled examples.

        Raises:
            ValueError: The objective or the server's rule is another.
        """
        objective, task = work.objective, work.task
        if not isinstance(objective, FedIRM):
            raise ValueError(f"client=fedirm needs objective=fedirm, got {type(objective).__name__}")
        if CLASSES not in task.extras:
            raise ValueError("client=fedirm needs strategy=fedirm: the server sent no relation matrix")
        came = task.extras[CLASSES]
        relations = {f"{RELATIONS}.received": came["means"], f"{RELATIONS}.known": came["counts"] > 0}
        bundle.load(work.model, relations)
        outcome = super().train(work)
        rows, present = objective.own(work.model)
        sent = {"sums": rows.float().cpu().numpy(), "counts": present.float().cpu().numpy()}
        return replace(outcome, sent={CLASSES: sent})
