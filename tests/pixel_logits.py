"""A model whose logits are the pixels of its views, for tests of what a classifier learns."""

import torch
from torch import Tensor, nn

from fedssl.models.bundle import build_bundle
from fedssl.models.encoder import Encoder
from fedssl.objectives.objective import CLASSIFIER, Objective, Population


def view_of(logits: Tensor) -> Tensor:
    """Return views `[n, num_classes, 1, 1, 1]` that are classified by these logits `[n, num_classes]`."""
    return logits[:, :, None, None, None]


def logit_model(objective: Objective, num_classes: int, num_examples: int = 8) -> nn.ModuleDict:
    """Return the objective's bundle, in double precision, whose classifier is the identity."""
    population = Population(num_examples, num_classes)
    model = build_bundle(lambda: Encoder(nn.Identity(), num_classes), objective, 0, population).double()
    with torch.no_grad():
        model[CLASSIFIER].weight.copy_(torch.eye(num_classes))
        model[CLASSIFIER].bias.zero_()
    return model
