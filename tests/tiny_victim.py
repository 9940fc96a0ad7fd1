"""Digits of 16x16 pixels, protected or not, and a small network that learns from them."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from fedssl.data.digits import load_images
from fedssl.data.image_files import convert
from fedssl.privacy.unlearnable.noise import Noise
from fedssl.privacy.unlearnable.protector import Owned, Say, silent
from fedssl.seeding import generator, torch_stream

Images, Labels = NDArray[np.uint8], NDArray[np.int64]
NUM_TRAIN, EPOCHS, BATCH = 1300, 15, 64


@cache
def digits16() -> tuple[Images, Labels, Images, Labels]:
    """Return 1300 images `[n, 16, 16, 1]` to learn from and their labels, and 497 others."""
    small, labels = load_images()
    images = convert(small[..., None], 1, (16, 16))
    order = generator(0, "digits16").permutation(len(images))
    train, test = order[:NUM_TRAIN], order[NUM_TRAIN:]
    return images[train], labels[train], images[test], labels[test]


def owned(number: int = NUM_TRAIN, seed: int = 0, say: Say = silent) -> Owned:
    images, labels, _, _ = digits16()
    return Owned(images=images[:number], labels=labels[:number], num_classes=10, seed=seed, say=say)


def apply_to_all(noise: Noise, images: Images) -> Images:
    return np.concatenate([noise.apply(image[None], example) for example, image in enumerate(images)])


def accuracy(images: Images, labels: Labels, test_labels: Labels, seed: int = 0) -> float:
    """Return the accuracy on the clean test images of a network of two convolutions that learned from `images`."""
    with torch_stream(seed, "tiny victim"):
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(512, 10)),
        )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    order, pixels, wanted = generator(seed, "tiny victim", "order"), _pixels(images), torch.from_numpy(labels)
    for _ in range(EPOCHS):
        for places in torch.from_numpy(order.permutation(len(labels))).split(BATCH):
            loss = F.cross_entropy(model(pixels[places]), wanted[places])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        found = model(_pixels(digits16()[2])).argmax(dim=1).numpy()
    return float((found == test_labels).mean())


def _pixels(images: Images) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
