"""Federated semi-supervised methods on one loader, one encoder and one evaluation: ten clients, four know their labels.

    python -m benchmarks.label_deficiency --dataset fashion_mnist --root DIR   # see --help for budgets and choices

Every run is `experiment=label_deficiency` with a few overrides. Which client holds what and who knows labels changes
with the seed, for all methods alike, so that methods are compared seed by seed. A run that is done is read, not
repeated: the command can be broken off and given again. What begins with a trained encoder waits for its training.
"""

import argparse
import json
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.experiments import ROOT, Result, Words, run_all, spread
from benchmarks.measure import RESULTS, report

UPPER, LOWER = "FedAvg, all labels (upper bound)", "FedAvg, labelled clients (lower bound)"
PRE_TRAINING = "SimCLR of all clients, then 1% of all labels in one place"
ENCODER = "ENCODER"  # stands for the file that the pre-training of the same seed leaves behind
RULES = {
    "Pseudo-Label": ["objective=pseudo_label"],
    "FixMatch": ["objective=fixmatch"],
    "FlexMatch": ["objective=flexmatch"],
    "FreeMatch": ["objective=freematch"],
    "PRG": ["objective=prg"],
    "SemiReward": ["objective=semireward"],
    "WAD": ["objective=wad", "strategy=class_means", f"objective.rule.teacher={ENCODER}"],
}
TWIN = "objective=twinsight"
METHODS: Mapping[str, Sequence[str]] = {
    UPPER: ["labels=all"],
    LOWER: [],
    "FedProx, labelled clients": ["client=fedprox"],
    "Two stages: SimCLR, then the lower bound": [f"init={ENCODER}"],
    **{f"FedAvg + {label}": [*words, *(["client=wad"] if label == "WAD" else [])] for label, words in RULES.items()},
    **{
        f"FedProx + {label}": [*words, *(["client=wad", "client.mu=0.01"] if label == "WAD" else ["client=fedprox"])]
        for label, words in RULES.items()
    },
    "Fed-Consist": ["objective=fed_consist", "strategy=labelled_share"],
    "FedIRM": ["objective=fedirm", "client=fedirm", "strategy=fedirm"],
    "RSCFed": ["objective=rscfed", "strategy=rscfed"],
    "SemiFL": ["objective=semifl", "client=semifl", "strategy=semifl"],
    "CBAFed": ["objective=supervised", "objective.labelled_only=false", "client=cbafed", "strategy=cbafed"],
    "FedMatch": ["objective=fedmatch", "client=fedmatch", "strategy=fedmatch"],
    "Twin-sight": [TWIN],
    "Twin-sight, FreeMatch": [TWIN, "rule@objective.rule=freematch"],
}
VARIANTS: Mapping[str, Sequence[str]] = {
    "Lower bound, two clients a round, as many as otherwise know labels": ["cohort=2"],
    "Lower bound, group normalisation": ["model.norm=group"],
    "Twin-sight, group normalisation": [TWIN, "model.norm=group"],
    "Twin-sight, labelled clients count half": [TWIN, "strategy=labelled_share"],
    "Twin-sight, labelled clients count 0.8": [TWIN, "strategy=labelled_share", "strategy.labelled_share=0.8"],
    "Twin-sight, neighbours count 62 (as in the public code)": [TWIN, "objective.neighbour_weight=62"],
    "Twin-sight, no pseudo-labels (public code)": [TWIN, "objective.reference_compat=[no_pseudo_labels]"],
    "Twin-sight, one network": [TWIN, "objective.single_network=true"],
}
"""What Twin-sight's parts do: each takes the settings that Twin-sight itself was tuned to."""
NO_UNLABELLED = (UPPER, LOWER, "FedProx, labelled clients", "Two stages: SimCLR, then the lower bound")
Setting = tuple[str, str]  # learning rate, and the share of the rounds that begin with labelled clients alone
SETTINGS: Sequence[Setting] = (("0.1", "0"), ("0.1", "1/2"), ("0.03", "1/2"))
SUPERVISED_SETTINGS: Sequence[Setting] = (("0.03", "0"), ("0.1", "0"), ("0.3", "0"))
LOSS_OF_TEN = ("FedMatch",)  # whose labelled loss counts ten times: a tenth of the learning rates
COMMON_RATE = 0.1  # on data that nothing was tuned on: rates do not carry over, first rounds may
TUNING_SEED = 100


def settings(method: str) -> Sequence[Setting]:
    """Return the three settings of which a method's best is chosen, on a seed that the table leaves out."""
    if method in NO_UNLABELLED:
        return SUPERVISED_SETTINGS
    return [(f"{float(rate) / 10:g}" if method in LOSS_OF_TEN else rate, share) for rate, share in SETTINGS]


@dataclass(frozen=True, slots=True)
class Budget:
    """How long and how large.

    Attributes:
        rounds: Of every run, the pre-training of encoders too.
        words: Further overrides of every run.
        tuned: Whether each method's best setting is chosen, or all run as published: rate 0.01, no first rounds.
    """

    rounds: int
    words: Sequence[str]
    tuned: bool = True


BUDGETS = {
    "smoke": Budget(4, ["data.num_train=1000", "data.num_test=500"]),
    "cpu": Budget(40, []),
    "published": Budget(
        500,
        [
            "model=resnet18",
            "~model.stem_stride",
            "client.batch_size=64",
            "client.schedule=constant",
            "data.num_train=null",
            "data.num_test=null",
        ],
        tuned=False,
    ),
}
AS_PUBLISHED: Setting = ("0.01", "0")
DATASETS: Mapping[str, Sequence[str]] = {
    "fashion_mnist": ["data.channels=1", "height=28", "width=28", "augmentation=semi_grey"],
    "cifar10": ["data.channels=3"],
    "cifar100": ["data.channels=3"],
    "svhn": ["data.channels=3"],
    "digits": ["data.channels=1", "height=16", "width=16", "augmentation=semi_digits"],
}


def data_words(dataset: str, root: Path | None, budget: Budget) -> list[str]:
    """Return what chooses the data: files of this machine, or what is downloaded where no folder is given."""
    own = [*DATASETS[dataset], *budget.words]
    if dataset == "digits":  # comes with a library, whole
        return ["data=digits", "~data.num_train", "~data.num_test", *(w for w in own if not w.startswith("data.num"))]
    if not budget.tuned:
        own.append(f"labels=twinsight_{dataset}")
    return [*([f"data={dataset}"] if root is None else ["data=packed", f"data.root={root}"]), *own]


Case = tuple[str, int, Setting]


class Study:
    """The runs of one data set and one budget, in a directory of their own.

    Args:
        data: What chooses the data and how much of it, see `data_words`.
        budget: How long and how large.
        runs: Where runs are kept.
        processes: Runs at once, one core each.
    """

    def __init__(self, data: Words, budget: Budget, runs: Path, processes: int) -> None:
        self.budget = budget
        self.runs = runs
        self._common = ["experiment=label_deficiency", *data, f"rounds={budget.rounds}"]
        self._processes = processes

    def path(self, case: Case) -> Path:
        """Return the directory of a run."""
        method, seed, (rate, share) = case
        name = re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")
        return self.runs / f"{name}_{seed}_{rate}_{share.replace('/', 'of')}"

    def words(self, case: Case) -> list[str]:
        """Return what a run is made from."""
        method, seed, (rate, share) = case
        encoder = str(self._encoder(seed) / "encoder.safetensors")
        own = [word.replace(ENCODER, encoder) for word in {**METHODS, **VARIANTS}[method]]
        first = int(Fraction(share) * self.budget.rounds)
        return [*self._common, f"seed={seed}", f"optimizer.lr={rate}", f"labelled_rounds={first}", *own]

    def _encoder(self, seed: int) -> Path:
        return self.runs / f"simclr_{seed}"

    def pre_train(self, seeds: Sequence[int]) -> list[Result]:
        """Train an encoder of all clients without labels for each seed."""
        own = ["objective=simclr", "optimizer=adamw", 'evaluation.scores=[linear,"fine-tune 1%"]']
        last = f"evaluate_every={self.budget.rounds}"
        jobs = {self._encoder(seed).name: [*self._common, f"seed={seed}", *own, last] for seed in seeds}
        return list(run_all(jobs, self.runs, self._processes).values())

    def run(self, cases: Sequence[Case]) -> dict[Case, Result]:
        """Run what is missing."""
        results = run_all({self.path(case).name: self.words(case) for case in cases}, self.runs, self._processes)
        return {case: results[self.path(case).name] for case in cases}

    def tune(self, methods: Sequence[str]) -> None:
        """Try the settings of each method on a seed that the table leaves out."""
        self.run([(method, TUNING_SEED, setting) for method in methods for setting in settings(method)])

    def best(self, methods: Sequence[str], *, same_rate: bool = False) -> dict[str, Setting]:
        """Return the best setting of each method among those that were tried, or among those of the common rate."""

        def tried(method: str) -> list[Setting]:
            common = f"{COMMON_RATE / 10:g}" if method in LOSS_OF_TEN else f"{COMMON_RATE:g}"
            return [setting for setting in settings(method) if not same_rate or setting[0] == common]

        return {
            method: max(tried(method), key=lambda setting: self.late((method, TUNING_SEED, setting)))
            for method in methods
        }

    def records(self, case: Case) -> list[dict[str, Any]]:
        """Return the rounds of a run."""
        return [json.loads(line) for line in (self.path(case) / "rounds.jsonl").read_text().splitlines()]

    def curve(self, case: Case) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the rounds of a run that were evaluated, and their accuracies."""
        scored = [record for record in self.records(case) if "accuracy" in record["scores"]]
        return np.array([r["round"] for r in scored]), np.array([r["scores"]["accuracy"] for r in scored])

    def late(self, case: Case) -> float:
        """Return the mean accuracy of the last ten evaluated rounds: a single one says little."""
        return float(self.curve(case)[1][-10:].mean())

    def metric(self, case: Case, name: str) -> float:
        """Return the mean of a metric over the last ten rounds that have it; not a number where none has."""
        values = [record["metrics"][name] for record in self.records(case) if name in record["metrics"]]
        return float(np.mean(values[-10:])) if values else float("nan")


HEADER = (
    "",
    "accuracy",
    "beyond the lower bound",
    "best round",
    "reaches the lower bound in round",
    "pseudo-labels used",
    "right",
    "update angle",
    "rate, first rounds",
    "seconds",
    "MB",
)


def rows(
    study: Study, chosen: Mapping[str, Setting], seeds: Sequence[int], results: Mapping[Case, Result]
) -> list[list[str]]:
    """Return a row a method, the best first."""
    cases = {method: [(method, seed, setting) for seed in seeds] for method, setting in chosen.items()}
    accuracies = {method: np.array([study.late(case) for case in own]) for method, own in cases.items()}
    lower = accuracies[LOWER]
    table = []
    for method in sorted(chosen, key=lambda name: -accuracies[name].mean()):
        own = cases[method]
        reached = [_first(*study.curve(case), target) for case, target in zip(own, lower, strict=True)]
        there = [number for number in reached if number is not None]
        used, right, degrees = (
            float(np.nanmean([study.metric(case, name) for case in own] or [np.nan]))
            for name in ("pseudo-label coverage", "pseudo-label accuracy", "update angle")
        )
        table.append(
            [
                method,
                spread(list(accuracies[method])),
                "" if method == LOWER else spread(list(accuracies[method] - lower), "+"),
                spread([float(study.curve(case)[1].max()) for case in own]),
                f"{np.mean(there):.0f} ({len(there)} of {len(seeds)})" if there else "never",
                _number(used, 2),
                _number(right, 2),
                _number(degrees, 0),
                ", ".join(chosen[method]),
                f"{np.mean([results[case]['seconds'] for case in own]):.0f}",
                f"{np.mean([results[case]['bytes_up'] + results[case]['bytes_down'] for case in own]) / 1e6:.0f}",
            ]
        )
    return table


def _first(rounds: NDArray[np.int64], accuracies: NDArray[np.float64], target: float) -> int | None:
    there = np.flatnonzero(accuracies >= target)
    return int(rounds[there[0]]) if len(there) else None


def _number(value: float, digits: int) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def draw(study: Study, chosen: Mapping[str, Setting], seeds: Sequence[int], out: Path) -> None:
    """Draw the accuracy of each method over the rounds, the mean over seeds, beside the two bounds."""
    from matplotlib.figure import Figure

    others = [method for method in chosen if method not in (UPPER, LOWER)]
    columns = 4
    number = -(-len(others) // columns)
    figure = Figure(figsize=(3.0 * columns, 2.0 * number), layout="constrained")
    panels = figure.subplots(number, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, method in zip(panels, others, strict=False):
        for name, colour in ((UPPER, "#9ca3af"), (LOWER, "#f59e0b"), (method, "#2563eb")):
            curves = [study.curve((name, seed, chosen[name])) for seed in seeds]
            values = np.array([accuracies for _, accuracies in curves])
            panel.plot(curves[0][0], values.mean(axis=0), color=colour, linewidth=1.8 if name == method else 1.0)
            if name == method:
                panel.fill_between(
                    curves[0][0], values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0
                )
        panel.set_title(textwrap.fill(method, 38), fontsize=8)
        panel.tick_params(labelsize=7)
    for panel in panels[len(others) :]:
        panel.set_axis_off()
    figure.supxlabel("round", fontsize=9)
    figure.supylabel("test accuracy: the method with its range, grey upper bound, orange lower bound", fontsize=9)
    figure.savefig(out, dpi=64)


def main() -> None:
    """Run what is missing, and write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=list(DATASETS), required=True)
    parser.add_argument(
        "--root", type=Path, help="a folder with train.npz and test.npz; without it data are downloaded"
    )
    parser.add_argument("--budget", choices=list(BUDGETS), default="cpu")
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help="only these and the bounds"
    )
    parser.add_argument("--variants", action="store_true", help="Twin-sight's parts, beside the bounds, instead")
    parser.add_argument(
        "--tuned-on", choices=list(DATASETS), help="tune nothing: one rate, and the first rounds that were best there"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once, one core each")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "label_deficiency", help="where runs are kept")
    options = parser.parse_args()
    budget, seeds = BUDGETS[options.budget], options.seeds
    root = None if options.root is None else options.root.resolve()
    runs = options.runs.resolve() / f"{options.dataset}_{options.budget}"
    study = Study(data_words(options.dataset, root, budget), budget, runs, options.jobs)
    wanted = ["Twin-sight"] if options.variants else options.methods
    methods = [method for method in METHODS if wanted is None or method in (UPPER, LOWER, *wanted)]
    few = study.pre_train(seeds)
    if not budget.tuned:
        chosen = dict.fromkeys(methods, AS_PUBLISHED)
    elif options.tuned_on is not None:
        chosen = Study([], budget, runs.with_name(f"{options.tuned_on}_{options.budget}"), 1).best(
            methods, same_rate=True
        )
    else:
        study.pre_train([TUNING_SEED])
        study.tune(methods)
        chosen = study.best(methods)
    if options.variants:
        chosen |= dict.fromkeys(VARIANTS, chosen["Twin-sight"])
    results = study.run([(method, seed, setting) for seed in seeds for method, setting in chosen.items()])
    kind = "twinsight" if options.variants else "label_deficiency"
    name = "_".join([kind, options.dataset, *([options.budget] if options.budget != "cpu" else [])])
    draw(study, chosen, seeds, RESULTS / f"{name}.png")
    choice = "the best of three on another seed" if budget.tuned else "as published"
    if options.tuned_on is not None:
        choice = f"one rate for all (a tenth where the loss counts ten times), and what was best on {options.tuned_on}"
    notes = [
        f"{budget.rounds} rounds of 5 of 10 clients, 4 with labels, Dirichlet 0.1; mean over seeds {seeds}, ± is the "
        "standard deviation over them. Accuracy is the mean of the last ten evaluated rounds. Pseudo-labels: the share "
        "of unlabelled examples that clients learned from, and how many of these labels were right, in the last ten "
        "rounds. The update angle, in degrees, is between the mean updates of clients with and without labels. Rate, "
        f"and share of rounds with labelled clients alone: {choice}. MB up and down; one core a run.",
        "",
        f"{PRE_TRAINING}: {spread([result['scores']['fine-tune 1%'] for result in few])}; a linear "
        f"probe with all labels: {spread([result['scores']['linear'] for result in few])}.",
    ]
    title = f"{'Parts of Twin-sight' if options.variants else 'Label deficiency'}: {options.dataset}"
    report(
        name, title, HEADER, rows(study, chosen, seeds, results), notes, private=[str(options.root), str(options.runs)]
    )


if __name__ == "__main__":
    main()
