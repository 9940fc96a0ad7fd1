"""FedVSSL on videos: retrieval of training videos by test videos, beside all that it must beat.

    python -m benchmarks.fedvssl weizmann DIR   # the folder with metadata.csv; see --help for other choices
    python -m benchmarks.fedvssl lung DIR
    python -m benchmarks.fedvssl moving_digits

Every method is `experiment=fedvssl_NAME` with a few overrides. Each fold of Weizmann holds out three people, each of
the lung ultrasound a third of the patients: a video asks once. A mean is over folds and seeds; a spread is the
standard deviation over seeds of the mean over folds. A run that is already in the runs folder is read, not repeated.
"""

import argparse
import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.experiments import ROOT, Result, run_all, spread
from benchmarks.measure import report

Words = Sequence[str]

PEOPLE = ("daria", "denis", "eli"), ("ido", "ira", "lena"), ("lyova", "moshe", "shahar")
VARIANTS = ("0", "0"), ("1", "0"), ("0", "1"), ("1", "1"), ("0.9", "0"), ("0.9", "1")
"""The shares alpha of the loss-weighted mean and the averages beta with the last model that are published."""
PRETEXTS = {"clip contrast": "cvrl", "VCOP": "vcop", "Speed": "speed", "CtP": "ctp"}
ONE_CLIENT = ("partition=iid", "partition.num_clients=1", "strategy=fedavg")
PAIR = 2
SCORES = ("R@1", "R@5", "kNN", "linear")


@dataclass(frozen=True)
class Set:
    """A data set of the benchmark.

    Attributes:
        title: What it is called.
        pretext: That its preset learns by, one of `PRETEXTS`.
        folds: What is held out of each, as overrides.
        note: What its numbers do and do not show.
    """

    title: str
    pretext: str
    folds: Sequence[Words]
    note: str

    @property
    def methods(self) -> Mapping[str, Words]:
        """The overrides of each method, by its name."""
        variants = {
            f"FedVSSL (alpha {alpha}, beta {beta}), {self.pretext}": (
                f"strategy.alpha={alpha}",
                f"strategy.beta={beta}",
            )
            for alpha, beta in VARIANTS
        }
        others = {
            f"FedVSSL (alpha 0.9, beta 0), {name}": (f"objective={objective}",)
            for name, objective in PRETEXTS.items()
            if name != self.pretext
        }
        return {
            **variants,
            f"FedAvg of everything, {self.pretext}": ("strategy=fedavg",),
            **others,
            "Inverted alpha of 0.9, a defect of a public port": ("strategy.reference_compat=inverted_alpha",),
            "Updates concatenated, another": ("strategy.reference_compat=concatenated",),
            "Centralised, as many steps as one client": (*ONE_CLIENT, "client.epochs=1"),
            "Centralised, as many steps as all clients": ONE_CLIENT,
        }


def weizmann(data: Path) -> Set:
    """Return the Weizmann actions, by people."""
    folds = [(f"data.root={data}", f"data.test_owners=[{','.join(people)}]") for people in PEOPLE]
    note = "Nine actions before a still background, one client a person; no action is as frequent as .13."
    return Set("the Weizmann actions, a client a person", "clip contrast", folds, note)


def lung(data: Path) -> Set:
    """Return the lung ultrasound, by patients, a third of those of each source and label.

    A source of one patient is held out whole in one fold, which has a client fewer; one of two is always trained on.
    """
    with (data / "metadata.csv").open(encoding="utf-8", newline="") as stream:
        videos = list(csv.DictReader(stream))
    of_patient = {video["patient_id"]: (video["source"], video["label"]) for video in videos}
    patients = Counter(source for source, _ in of_patient.values())
    # a client needs two videos to contrast
    asking = [patient for patient, (source, _) in of_patient.items() if patients[source] != PAIR]
    asking.sort(key=lambda patient: (*of_patient[patient], patient))
    thirds = [asking[first::3] for first in range(3)]
    folds = [(f"data.root={data}", f"data.test_owners=[{','.join(map(repr, third))}]") for third in thirds]
    asked = [video["label"] for video in videos if video["patient_id"] in asking]
    right = sum(_by_source(videos, third) for third in thirds) / len(asked)
    most = Counter(asked).most_common(1)[0][1] / len(asked)
    note = (
        "Label and source are tied: answering each test video with the label that is most frequent among the training "
        f"videos of its source (of all, where it has none) is right for {right:.3f} of them, the most "
        f"frequent label alone for {most:.3f}. What "
        "recognises devices and sites scores as high as what recognises disease, so the table shows which encoders "
        "tell such videos apart, and nothing about diagnosis."
    )
    return Set("lung ultrasound, a client a source", "clip contrast", folds, note)


def moving_digits(data: Path) -> Set:
    """Return the moving digits, which are made and not read."""
    note = "Eight motions, equally frequent, two of them a client; the digit that moves says nothing about the class."
    return Set("moving digits, two motions a client", "VCOP", [()], note)


SETS = {each.__name__: each for each in (weizmann, lung, moving_digits)}


def _by_source(videos: Sequence[Mapping[str, str]], patients: Sequence[str]) -> int:
    """Return how many videos of some patients their source alone tells the label of, learned from all others."""
    asked = [video for video in videos if video["patient_id"] in patients]
    known = [video for video in videos if video["patient_id"] not in patients]
    labels = {source: Counter(video["label"] for video in known if video["source"] == source)
              for source in {video["source"] for video in videos}}  # fmt: skip
    most = Counter(video["label"] for video in known).most_common(1)
    return sum((labels[video["source"]].most_common(1) or most)[0][0] == video["label"] for video in asked)


def rows(chosen: Set, results: Mapping[str, Result], seeds: Sequence[int]) -> list[list[str]]:
    """Return a row for the untrained encoder and for each method."""
    kinds = {"Untrained": (0, "untrained_scores")}
    kinds |= {method: (number, "scores") for number, method in enumerate(chosen.methods)}
    folds = range(len(chosen.folds))
    values = {
        label: np.array([[[results[f"{number}-{fold}-{seed}"][kind][key] for key in SCORES] for fold in folds]
                         for seed in seeds])
        for label, (number, kind) in kinds.items()
    }  # [seeds, folds, scores]  # fmt: skip
    table = []
    for label, scores in values.items():
        over = spread((scores - values["Untrained"])[:, :, 0].mean(axis=1), "+")
        each = " ".join(f"{value:.2f}" for value in scores[:, :, 0].mean(axis=0))
        means = [spread(scores[:, :, place].mean(axis=1)) for place in range(len(SCORES))]
        table.append([label, *means, over, *([each] if len(folds) > 1 else [])])
    return table


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETS, help="of the data")
    parser.add_argument(
        "data", type=Path, nargs="?", help="the folder with metadata.csv and the videos, where they are"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once, one core each")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "outputs", help="where runs are kept, in a folder a data set"
    )
    arguments = parser.parse_args()
    if (arguments.data is None) != (arguments.name == "moving_digits"):
        parser.error("DIR must be given, with weizmann and lung alone")
    data = (arguments.data or Path()).resolve()
    chosen = SETS[arguments.name](data)
    base = [f"experiment=fedvssl_{arguments.name}", "evaluation.scores=[retrieval,kNN,linear]"]
    jobs = {
        f"{number}-{fold}-{seed}": [*base, *held_out, f"seed={seed}", *overrides]
        for seed in arguments.seeds
        for fold, held_out in enumerate(chosen.folds)
        for number, overrides in enumerate(chosen.methods.values())
    }
    results = run_all(jobs, (arguments.runs / f"fedvssl_{arguments.name}").resolve(), arguments.jobs)
    title = f"FedVSSL on {chosen.title}: retrieval of training videos by test videos"
    header = ["", *SCORES, "R@1 over untrained", *(["R@1 of each fold"] if len(chosen.folds) > 1 else [])]
    notes = [
        f"Mean over {len(chosen.folds)} fold(s) and seeds {arguments.seeds}; ± is the standard deviation over seeds. "
        f"One core a run. {chosen.note}"
    ]
    name = f"fedvssl_{arguments.name}"
    report(name, title, header, rows(chosen, results, arguments.seeds), notes, private=[str(arguments.data)])


if __name__ == "__main__":
    main()
