"""FedMatch, client side: helpers vote, and the server hears what the model says of noise (Jeong et al. 2021).

"Federated Semi-Supervised Learning with Inter-Client Consistency & Disjoint Learning".
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import truncnorm
from torch import Tensor

from clients.local_training import LocalTraining, Outcome, Work
from fedssl.objectives.fedmatch import FedMatch, helper
from fedssl.objectives.supervised import classify
from fedssl.seeding import generator
from fedssl.training.loop import make_batch

HELPER = "helper"
EMBEDDING = "embedding"


@dataclass(frozen=True)
class FedMatchTraining(LocalTraining):
    """Local training beside helpers, where the server sends any; for objective=fedmatch and strategy=fedmatch.

    A helper is another client's psi on the sigma that came. What a client gets so is what single other clients have
    learned, not a mean: no secure aggregation hides it, and attacks on models apply to it. What leaves a client beside
    the model are the probabilities that the trained model gives one image of noise, the same for all clients.
    """

    def train(self, work: Work) -> Outcome:
        """Train the model in place, and send what it says of the image of noise.

        Raises:
            ValueError: The objective is another.
        """
        model, objective, task = work.model, work.objective, work.task
        if not isinstance(objective, FedMatch):
            raise ValueError(f"client=fedmatch needs objective=fedmatch, got {type(objective).__name__}")
        came = [task.extras[name] for name in sorted(task.extras) if name.startswith(HELPER)]
        helped = objective.with_helpers([helper(model, psi) for psi in came])
        outcome = super().train(replace(work, objective=helped))
        device = next(model.parameters()).device
        seen = make_batch(objective, work.examples, np.array([0]), work.stream, 0, device)
        model.eval()
        with torch.no_grad():
            said = classify(model, noise(task.seed, seen.views[0])).softmax(dim=1)[0]
        return replace(outcome, sent={EMBEDDING: {"probabilities": said.float().cpu().numpy()}})


def noise(seed: int, like: Tensor) -> Tensor:
    """Return an image, or a clip, of the size of `like`: normal around 0.5 with standard deviation 0.5, in [0, 1]."""
    drawn = truncnorm.rvs(-1, 1, 0.5, 0.5, size=tuple(like.shape), random_state=generator(seed, "noise"))
    return torch.from_numpy(drawn).to(like)
