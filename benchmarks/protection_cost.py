"""How long noise takes to be made: seconds a thousand images, for every kind that is configured.

python -m benchmarks.protection_cost DIR   # the folder with train.npz and test.npz; six minutes on one core
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.experiments import KEEP_MEMORY
from benchmarks.measure import report
from fedssl.compose import groups, load
from fedssl.config import build
from fedssl.data.packed import packed
from fedssl.privacy.unlearnable.protected_dataset import stills
from fedssl.privacy.unlearnable.protector import Owned, Protector

ONLINE = ("none", "uc_torchvision")
"""No noise, and a surrogate that is downloaded."""


def seconds(protector: Protector, owned: Owned) -> tuple[float, float]:
    """Return the time that the noise takes, and that of putting it on all images."""
    begun = time.perf_counter()
    noise = protector.fit(owned)
    made = time.perf_counter()
    changed = [noise.apply(owned.images[[place]], place) for place in range(len(owned.images))]
    done = time.perf_counter()
    if np.array_equal(np.concatenate(changed), owned.images):
        raise RuntimeError(f"{protector}: changes nothing")
    return made - begun, done - made


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with train.npz and test.npz")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000], help="images")
    parser.add_argument("--threads", type=int, default=1, help="cores")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    os.environ.update(KEEP_MEMORY)
    torch.set_num_threads(chosen.threads)
    torch.use_deterministic_algorithms(True)
    rows = []
    for name in groups()["protection"]:
        if name in ONLINE:
            continue
        config = load(["experiment=quickstart_images", f"protection={name}", "data=packed", f"data.root={chosen.data}"])
        row = [name]
        for size in chosen.sizes:
            train = packed(str(chosen.data), num_train=size, num_test=10).train
            device = torch.device(chosen.device)
            owned = Owned(stills(train, np.arange(size)), train.labels, len(train.classes), 0, device)
            made, put = seconds(build(config, "protection"), owned)
            row += [f"{made:.1f}", f"{1000 * made / size:.1f}", f"{1000 * put / size:.2f}"]
        sys.stderr.write(f"{' '.join(row)}\n")
        rows.append(row)
    columns = ["{} images, seconds", "a thousand, seconds", "putting it on a thousand, seconds"]
    header = ["protection", *(column.format(size) for size in chosen.sizes for column in columns)]
    note = (
        f"Images of CIFAR-10, {chosen.threads} thread(s) on {chosen.device}, one run of each, with the settings of its "
        "file in conf/protection. Contrastive poisoning takes a number of steps and not of passes; error-minimising "
        "noise stops when its model errs little."
    )
    report("protection_cost", "How long noise takes", header, rows, [note], private=[str(chosen.data)])


if __name__ == "__main__":
    main()
