"""What encoders make of random views of examples, the same views for every encoder that is compared."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedssl.data.dataset import Dataset
from fedssl.errors import ConfigError, DataError
from fedssl.evaluation.features import evaluating
from fedssl.objectives.objective import Objective
from fedssl.privacy.audit.sslmem import pairs
from fedssl.seeding import derive
from fedssl.training.loop import Examples, Stream, make_batch
from fedssl.workspace import Workspace

_BATCH = 64  # examples whose views are made at once


class Views:
    """Random views of examples as a run's objective and augmentation make them.

    Args:
        workspace: Of the run.
        number: Views of each example.
        seed: Root of the draws; an example's depend on its index and on nothing else.

    Raises:
        ConfigError: The objective sees examples only as they are.
    """

    def __init__(self, workspace: Workspace, number: int, seed: int) -> None:
        self._objective: Objective = workspace.objective
        self._augmentation = workspace.augmentation
        self._device = workspace.device
        self._number = number
        self._seed = derive(seed, "audit", "views")
        self._random = [role not in ("clean", "local") for role in self._objective.views]
        if not any(self._random):
            raise ConfigError("objective: sees examples only as they are, so there are no views to align")

    def alignments(
        self, encoders: Sequence[nn.Module], dataset: Dataset, indices: NDArray[np.int64]
    ) -> list[NDArray[np.float64]]:
        """Return the alignment `[n]` of examples by each output of each encoder, see `sslmem.pairs`.

        Args:
            encoders: Lie on the workspace's device; their modes are restored. One may have several outputs, whose
                alignments then follow each other.
            dataset: Holds the examples.
            indices: `[n]` which of them.

        Raises:
            DataError: A feature is not a finite number.
        """
        batches = [[pairs(own) for own in features] for features in self._batches(encoders, dataset, indices)]
        return [np.concatenate(curve) for curve in zip(*batches, strict=True)]

    def features(self, encoder: nn.Module, dataset: Dataset, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the features `[n, views, dim]` of examples by an encoder; arguments and errors as of `alignments`."""
        return np.concatenate([features for (features,) in self._batches([encoder], dataset, indices)])

    def _batches(
        self, encoders: Sequence[nn.Module], dataset: Dataset, indices: NDArray[np.int64]
    ) -> Iterator[list[NDArray[np.float32]]]:
        """Yield the features `[batch, views, dim]` by each output of each encoder."""
        examples = Examples(dataset, indices, self._augmentation)
        for first in range(0, len(indices), _BATCH):
            places = np.arange(first, min(first + _BATCH, len(indices)))
            by_view = [_outputs(encoders, view) for view in self._views(examples, places)]
            found = [np.stack(own, axis=1) for own in zip(*by_view, strict=True)]
            if not all(np.isfinite(features).all() for features in found):
                raise DataError("the features of an encoder are not all finite numbers")
            yield found

    def _views(self, examples: Examples, places: NDArray[np.int64]) -> Iterator[Tensor]:
        left = self._number
        for visit in range(self._number):
            batch = make_batch(self._objective, examples, places, Stream(self._seed, 0, visit), 0, self._device)
            views = [view for view, random in zip(batch.views, self._random, strict=True) if random]
            yield from views[:left]
            left -= len(views)
            if left <= 0:
                return


def _outputs(encoders: Sequence[nn.Module], view: Tensor) -> list[NDArray[np.float32]]:
    found: list[Tensor] = []
    for encoder in encoders:
        with evaluating(encoder), torch.no_grad():
            output = encoder(view)
        found.extend(output if isinstance(output, tuple) else (output,))
    return [features.float().cpu().numpy() for features in found]
