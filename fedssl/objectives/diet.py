"""DIET: tell which example it is, each a class of its own (Ibrahim 2024).

"Occam's Razor for Self Supervised Learning: What is Sufficient to Learn Good Representations?"
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedssl.checks import at_least, within
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import Batch, Objective, Population, Role, Step
from fedssl.privacy.contract import PrivacyContract


class Diet(Objective):
    """Cross entropy over a client's own examples, whose rows of the linear head never leave it.

    Row k belongs to the k-th of the client's examples in every round. All clients have a head of as many rows as the
    largest has examples: a step does not know how many its client has. Rows of no example are never a target and get
    the share `smoothing / rows` of every target, as the rows of other examples do; where clients have the same number
    of examples there are none.

    Under privacy of single examples the gradient of the head must be clipped and noised with the rest, although it
    stays: an example shapes its row, and the row shapes the gradients of the others. The number of examples must be
    public: without one of them the others would have other rows.

    Args:
        smoothing: Share of the target that is spread over all rows.
        num_classes: Rows of the head; None takes the number of examples of the largest client.

    Raises:
        ValueError: If an argument is out of range.
    """

    contract = PrivacyContract("per_example", frozenset({"head"}), numbered=True)
    views: tuple[Role, ...] = ("full",)

    def __init__(self, smoothing: float = 0.8, num_classes: int | None = None) -> None:
        within(0, 1, smoothing=smoothing)
        at_least(1, num_classes=num_classes)
        self.smoothing = smoothing
        self.num_classes = num_classes

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        """Return the linear head, a row for each example.

        Raises:
            ValueError: The largest client has more examples than there are to be rows.
        """
        if self.num_classes is not None and self.num_classes < population.num_examples:
            least = population.num_examples
            raise ValueError(f"num_classes must be at least the {least} examples, got {self.num_classes}")
        return {"head": nn.Linear(encoder.feature_dim, self.num_classes or max(1, population.num_examples), bias=False)}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        """Return the loss of one view, with "accuracy"."""
        logits: Tensor = model["head"](model["backbone"](batch.views[0]))
        right = (logits.detach().argmax(dim=1) == batch.places).float().mean()
        return Step(loss=diet(logits, batch.places, self.smoothing), metrics={"accuracy": right})


def diet(logits: Tensor, places: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross entropy, in nats, to targets of `1 - smoothing` on the place and the rest spread evenly.

    Args:
        logits: `[batch, classes]`.
        places: `[batch]` int64 in [0, classes).
        smoothing: Share of the target that is spread over all classes.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, places, label_smoothing=smoothing)
