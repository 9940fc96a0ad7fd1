"""Runs in which labels are missing: who is chosen, what batches hold, what is learned and what is measured."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from quadratics import Plain
from torch import Tensor, nn

from benchmarks.label_deficiency import AS_PUBLISHED, BUDGETS, DATASETS, UPPER, Study, data_words
from fedssl.compose import load
from fedssl.data.arrays import ArrayDataset
from fedssl.evaluation.transfer import evaluate_run
from fedssl.models.encoder import Encoder
from fedssl.models.encoder_file import read_encoder
from fedssl.objectives.objective import UNKNOWN, Batch, Objective, Population, PseudoLabels, Step
from fedssl.privacy.contract import PrivacyContract
from fedssl.training.diagnostics import PseudoLabelTally, angle, gradient_angle
from fedssl.training.loop import Examples, Schedule, Stream, fit
from fedssl.wire import LocalUpdate
from fedssl.workspace import Workspace
from simulate import main
from strategies.averaging import Averaging
from strategies.cohort import Roster
from strategies.conflict import Conflict

PLAIN = [
    "experiment=quickstart_images", "engine=local", "rounds=2", "model.width=4", "client.epochs=1",
    "partition.alpha=5.0",
]  # fmt: skip
DIGITS = [*PLAIN, "objective=supervised", "evaluation.scores=[accuracy]"]
UNSCORED = [*PLAIN, "objective=simclr", "evaluation=none"]
TWO_KNOW = ["labels=partial_client", "labels.num_labelled=2"]


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]


def sha(path: Path) -> str:
    return json.loads((path / "result.json").read_text())["model_sha256"]


class Recorded(Objective):
    """Keeps its batches, and learns nothing."""

    contract = PrivacyContract("per_example")

    def __init__(self, ratio: int | None) -> None:
        self.unlabelled_ratio = ratio
        self.batches: list[Batch] = []

    def build(self, encoder: Encoder, population: Population) -> dict[str, nn.Module]:
        return {}

    def step(self, model: nn.ModuleDict, batch: Batch) -> Step:
        self.batches.append(batch)
        return Step((model["backbone"].weight * 0).sum(), {})


class Noise(Plain):
    """Views are nothing but what was drawn."""

    num_uniforms = 1

    def __call__(self, clips: Tensor, uniforms: np.ndarray, role: str, ordinal: int) -> Tensor:
        return torch.from_numpy(uniforms).view(-1, 1, 1, 1, 1)


def batches(labels: list[int], ratio: int | None, batch_size: int = 4) -> list[Batch]:
    number = len(labels)
    dataset = ArrayDataset(np.zeros(number, np.int64), ("a",), ("",) * number, np.zeros((number, 1, 1, 1, 1), np.uint8))
    objective, model = Recorded(ratio), nn.ModuleDict({"backbone": nn.Linear(1, 1)})
    examples = Examples(dataset, np.arange(number), Noise(), np.array(labels))
    fit(
        model,
        objective,
        examples,
        lambda p: torch.optim.SGD(p, 0.1),
        Schedule(1, batch_size, 1.0, 0.0),
        Stream(0, 0, 1),
    )
    return objective.batches


def test_a_batch_of_a_mixed_client_has_one_labelled_example_for_each_three_others() -> None:
    seen = batches([0, 1] + [UNKNOWN] * 9, ratio=3)
    assert [batch.labelled.tolist() for batch in seen] == [[True, False, False, False]] * 3
    others = torch.cat([batch.places[1:] for batch in seen])
    assert sorted(others.tolist()) == list(range(2, 11))  # an epoch is one pass over the kind that lasts longer
    known = [int(batch.places[0]) for batch in seen]
    assert sorted(known[:2]) == [0, 1]  # nothing comes again before everything came


def test_an_example_that_comes_twice_in_an_epoch_gets_another_view() -> None:
    seen = batches([0] + [UNKNOWN] * 6, ratio=1, batch_size=4)
    views = {float(batch.views[0][row]) for batch in seen for row in torch.nonzero(batch.places == 0).flatten()}
    count = sum(int((batch.places == 0).sum()) for batch in seen)
    assert count == len(views) == 6


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1], [UNKNOWN] * 5])
def test_clients_of_one_kind_are_gone_through_in_order_whatever_the_ratio(labels: list[int]) -> None:
    with_ratio, without = batches(labels, 7, 2), batches(labels, None, 2)
    assert [b.places.tolist() for b in with_ratio] == [b.places.tolist() for b in without]
    assert [len(b.places) for b in without] == [2, 2, 1]


def test_pseudo_labels_are_counted_against_the_truth() -> None:
    tally = PseudoLabelTally(np.array([0, 0, 1, 1]))
    accepted = torch.tensor([True, True, True, False])
    tally.add(PseudoLabels(torch.arange(4), torch.tensor([0, 1, 1, 0]), accepted))
    tally.add(None)
    assert tally.shares() == {
        "pseudo-label coverage": 0.75, "pseudo-label accuracy": pytest.approx(2 / 3),
        "pseudo-label coverage.0": 1.0, "pseudo-label coverage.1": 0.5,
        "pseudo-label accuracy.0": 1.0, "pseudo-label accuracy.1": 0.5,
    }  # fmt: skip
    assert PseudoLabelTally(None).shares() == {}


def test_where_nobody_knows_the_truth_only_the_coverage_is_said() -> None:
    tally = PseudoLabelTally(None)
    tally.add(PseudoLabels(torch.arange(2), torch.zeros(2, dtype=torch.int64), torch.tensor([True, False])))
    assert tally.shares() == {"pseudo-label coverage": 0.5}


@pytest.mark.parametrize(("second", "degrees"), [([1.0, 0.0], 0.0), ([0.0, 2.0], 90.0), ([-3.0, 0.0], 180.0)])
def test_the_gradient_angle_is_that_of_two_vectors(second: list[float], degrees: float) -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(2, 1, bias=False)})
    weight = model["backbone"].weight
    terms = (weight[0, 0] * 5, (weight * torch.tensor([second])).sum())
    assert gradient_angle(model, terms) == pytest.approx([degrees])
    assert gradient_angle(model, (weight[0, 0], (weight * 0).sum())) == []
    assert angle(-1.0, 1.0, 1.0) == [180.0]


def updates(*values: tuple[int, list[float], int]) -> Iterator[LocalUpdate]:
    for partition, value, examples in values:
        yield LocalUpdate(partition, 1, {"backbone.w": np.array(value)}, examples, {})


def test_the_update_angle_is_between_the_mean_updates_of_the_two_kinds_of_clients() -> None:
    roster = Roster(3, int, lambda _: 1, lambda partition: 1 if partition == 0 else 0)
    conflict = Conflict({"backbone.w": np.ones(2), "head.w": np.ones(1)}, roster, [0, 1, 2], frozenset())
    for update in updates((0, [3.0, 1.0], 1), (1, [1.0, 5.0], 1), (2, [1.0, 1.0], 3)):
        conflict.add(update)
    assert conflict.metric() == {"update angle": pytest.approx(90.0)}  # (2, 0) and (0, 1)
    one_kind = Conflict({"backbone.w": np.ones(2)}, roster, [1, 2], frozenset())
    for update in updates((1, [3.0, 1.0], 1), (2, [1.0, 5.0], 1)):
        one_kind.add(update)
    assert one_kind.metric() == {}


def test_equal_weights_are_the_plain_mean() -> None:
    merged = Averaging(weights="equal").merge({}, updates((0, [1.0, 0.0], 10), (1, [3.0, 2.0], 30)), 1)
    assert merged["backbone.w"].tolist() == [2.0, 1.0]


def test_clients_without_labels_are_not_chosen_for_supervised_learning(tmp_path: Path) -> None:
    assert main([*DIGITS, *TWO_KNOW, f"run_dir={tmp_path / 'run'}"]) == 0
    without = Workspace(load([*DIGITS, *TWO_KNOW])).deficiency.without(0)
    for record in records(tmp_path / "run"):
        assert set(record["clients"]) == set(range(4)) - without


def test_in_the_first_labelled_rounds_only_those_who_know_labels_are_chosen(tmp_path: Path) -> None:
    words = [*UNSCORED, *TWO_KNOW, "labelled_rounds=1", "cohort=3"]
    assert main([*words, f"run_dir={tmp_path / 'run'}"]) == 0
    first, second = records(tmp_path / "run")
    assert (len(first["clients"]), len(second["clients"])) == (2, 3)
    assert "update angle" not in first["metrics"]
    assert 0 <= second["metrics"]["update angle"] <= 180


def test_an_objective_never_sees_a_label_that_its_client_does_not_know() -> None:
    workspace = Workspace(load([*UNSCORED, *TWO_KNOW]))
    without = workspace.deficiency.without(0)
    for client in range(4):
        labels = workspace.labels(client)
        assert (labels == UNKNOWN).all() if client in without else (labels != UNKNOWN).all()
    mixed = Workspace(load([*DIGITS, "labels=partial_data"]))
    assert len(mixed.indices(0)) == (mixed.labels(0) != UNKNOWN).sum() < len(mixed.parts[0])


def test_a_server_with_labels_of_its_own_learns_from_them_on_either_grid(tmp_path: Path) -> None:
    words = [*DIGITS, "objective=fixmatch", "objective.rule.threshold=0.3", "labels=labels_at_server"]
    words += ["labels.num_labels=100", "augmentation=semi_digits"]
    assert main([*words, f"run_dir={tmp_path / 'local'}"]) == 0
    assert main([*words, "engine=ray", "engine.num_workers=2", f"run_dir={tmp_path / 'ray'}"]) == 0
    assert sha(tmp_path / "local") == sha(tmp_path / "ray")
    workspace = Workspace(load(words))
    assert len(workspace.known.server) == 100
    assert sum(map(len, workspace.parts)) == len(workspace.splits.train) - 100
    untaught = [word for word in words if not word.startswith("labels")]
    assert main([*untaught, f"run_dir={tmp_path / 'untaught'}"]) == 0
    assert sha(tmp_path / "local") != sha(tmp_path / "untaught")


def test_a_run_begins_with_the_encoder_of_another(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*UNSCORED, f"run_dir={first}"]) == 0
    words = [*DIGITS, f"init={first / 'encoder.safetensors'}"]
    workspace = Workspace(load(words))
    for name, array in read_encoder(first / "encoder.safetensors").items():
        np.testing.assert_array_equal(workspace.initial[f"backbone.{name}"], array)
    assert main([*words, f"run_dir={second}"]) == 0
    assert workspace.fingerprint != Workspace(load(DIGITS)).fingerprint


def test_a_run_that_classifies_leaves_its_classifier_behind_and_is_scored_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*DIGITS, f"run_dir={run}", "checkpoint.best=accuracy"]) == 0
    names = {path.name for path in run.iterdir()}
    assert {"classifier.safetensors", "classifier_best.safetensors"} <= names
    trained = json.loads((run / "result.json").read_text())
    comparison = evaluate_run(run)
    assert comparison.trained == pytest.approx(trained["scores"])
    assert comparison.untrained == pytest.approx(trained["untrained_scores"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["objective=simclr"], "evaluation.scores: accuracy and worst class need an objective with a classifier"),
        ([*TWO_KNOW, "labels.num_labelled=9"], "labels.num_labelled=9: must be at most the 4 clients"),
        (["labels=partial_client", "labels.num_labelled=null"], "labels.num_labelled=None: must be null exactly where"),
        (
            ["labels=partial_client", "labels.num_labelled=null", "labels.unlabelled=[0,1,2,3]"],
            "labels: no client knows",
        ),
        (["labels=nobody"], "labels=nobody: no such option; allowed: all"),
        (["init=/nowhere/encoder.safetensors"], "init=/nowhere/encoder.safetensors: "),
        (["labelled_rounds=-1"], "labelled_rounds=-1: must be 0 or more"),
        (["strategy.weights=loss"], "strategy.weights=loss: must be one of examples, equal"),
    ],
)
def test_bad_input_is_one_line(words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DIGITS, *words, f"run_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_encoder_of_another_shape_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tmp_path / "first"
    assert main([*DIGITS, f"run_dir={first}"]) == 0
    words = [*DIGITS, "model.width=8", f"init={first / 'encoder.safetensors'}", f"run_dir={tmp_path / 'second'}"]
    assert main(words) == 2
    assert "does not fit the model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["objective=simclr", "evaluation=none", "labels=labels_at_server", "labels.num_labels=1"],
            "labels.num_labels=1: must be at least 2, the objective's smallest batch",
        ),
        ([*TWO_KNOW, "objective=supervised", "quorum=3"], "quorum=3: must be at most the 2 clients that know labels"),
        (
            [*TWO_KNOW, "objective=supervised", "evaluation=none", "client_evaluation=personal"],
            "client_evaluation: client 2 knows no label, and the objective needs one",
        ),
        (["objective=simclr", "strategy=fedmatch"], "strategy=fedmatch needs objective=fedmatch"),
        (
            ["objective=fixmatch", "rule@objective.rule=nobody"],
            "rule@objective.rule=nobody: no such option; allowed: fixed_threshold",
        ),
        (
            ["objective=twinsight", "objective.reference_compat=[xorr]"],
            "objective.reference_compat=['xorr']: must be a list, each one of xor, swapped_views",
        ),
    ],
)
def test_what_cannot_go_well_is_said_before_anything_runs(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*PLAIN, *words, f"run_dir={tmp_path / 'run'}"]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_labels_are_dealt_over_what_clients_train_on() -> None:
    words = [*DIGITS, "client_evaluation=personal", "labels=partial_data", "labels.share=null", "labels.per_class=1"]
    workspace = Workspace(load(words))
    for client in range(4):
        held = workspace.splits.train.labels[workspace.held_out(client)]
        assert len(held)
        assert len(workspace.indices(client)) == len(np.unique(workspace.splits.train.labels[workspace.parts[client]]))


def test_an_index_that_stands_at_two_places_gets_two_views() -> None:
    dataset = ArrayDataset(np.zeros(2, np.int64), ("a",), ("",) * 2, np.zeros((2, 1, 1, 1, 1), np.uint8))
    objective, model = Recorded(None), nn.ModuleDict({"backbone": nn.Linear(1, 1)})
    examples = Examples(dataset, np.array([0, 1, 0, 0]), Noise())
    fit(model, objective, examples, lambda p: torch.optim.SGD(p, 0.1), Schedule(1, 4, 1.0, 0.0), Stream(0, 0, 1))
    assert len(set(objective.batches[0].views[0].flatten().tolist())) == 4


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_run_of_the_benchmark_composes(dataset: str, budget: str, tmp_path: Path) -> None:
    study = Study(data_words(dataset, tmp_path, BUDGETS[budget]), BUDGETS[budget], tmp_path, 1)
    for method in (UPPER, "Twin-sight"):
        config = load(study.words((method, 0, AS_PUBLISHED)))
        assert ("PartialClient" in config.components["labels"]["_target_"]) == (method != UPPER)
