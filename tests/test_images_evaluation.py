"""The evaluation of image encoders as a whole, its configuration, and the evaluation of finished runs."""

import dataclasses
from dataclasses import dataclass, replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.numpy import save
from torch import nn

from fedssl.arrays import sha256
from fedssl.compose import CONF, load, load_run
from fedssl.config import build
from fedssl.data.arrays import ArrayDataset
from fedssl.data.dataset import Splits
from fedssl.errors import ConfigError, DataError
from fedssl.evaluation.__main__ import main
from fedssl.evaluation.fine_tune import FineTune
from fedssl.evaluation.image_set import ImageSet, image_features
from fedssl.evaluation.images import ImageEvaluation
from fedssl.evaluation.knn import knn_accuracy
from fedssl.evaluation.linear_probe import LinearProbe
from fedssl.evaluation.low_density import LowDensity
from fedssl.evaluation.measurement import SCORES
from fedssl.evaluation.retrieval import recall_at
from fedssl.evaluation.transfer import evaluate_run
from fedssl.models.encoder import Encoder
from fedssl.models.image import small_resnet
from fedssl.models.small3d import small3d
from fedssl.seeding import torch_stream
from fedssl.workspace import Workspace

CPU = torch.device("cpu")
EVERY = (*SCORES, "fine-tune 10%", "fine-tune 3 per class")
EVALUATION = ImageEvaluation(
    height=8,
    width=8,
    scores=EVERY,
    knn_k=3,
    linear=LinearProbe(l2=[0.1, 0.01]),
    fine_tune=FineTune(steps=3, batch_size=8, repeats=2),
    low_density=LowDensity(labels="10%", steps=5),
)


@dataclass
class Counting:
    """A dataset that counts how often it is read."""

    whole: ArrayDataset
    reads: int = 0

    def __post_init__(self) -> None:
        self.labels, self.classes, self.owners = self.whole.labels, self.whole.classes, self.whole.owners

    def __len__(self) -> int:
        return len(self.whole)

    def read(self, index: int) -> np.ndarray:
        self.reads += 1
        return self.whole.read(index)


def images(number: int, seed: int = 0, frames: int = 1, channels: int = 1) -> ArrayDataset:
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % 3
    pixels = rng.integers(0, 200, (number, frames, 10, 10, channels)) + 25 * labels[:, None, None, None, None]
    return ArrayDataset(labels, ("a", "b", "c"), ("",) * number, pixels.astype(np.uint8))


def encoder() -> Encoder:
    with torch_stream(0, "test"):
        return small_resnet(1, width=4)


SPLITS = Splits(images(45), images(31, seed=1))
with torch_stream(0, "classifier"):
    CLASSIFIER = nn.Linear(16, 3)


def test_the_accuracy_of_a_models_own_classifier_is_that_of_its_answers() -> None:
    evaluation = replace(EVALUATION, scores=["accuracy", "worst class"])
    always = nn.Linear(16, 3)
    with torch.no_grad():
        always.weight.zero_()
        always.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    # 10 of the 31 images are of class 1
    assert evaluation(encoder(), SPLITS, CPU, always) == {"accuracy": pytest.approx(10 / 31), "worst class": 0.0}
    with pytest.raises(ValueError, match="no classifier of its own"):
        evaluation(encoder(), SPLITS, CPU)


def test_every_score_is_named_and_finite_and_leaves_the_encoder_as_it_was() -> None:
    network = encoder().train()
    network.body[1].eval()

    def everything() -> tuple[str, list[bool]]:
        tensors = {name: value.numpy() for name, value in network.state_dict().items()}
        return sha256(tensors), [module.training for module in network.modules()]

    before, stream = everything(), torch.get_rng_state()
    scores = EVALUATION(network, SPLITS, CPU, CLASSIFIER)
    assert tuple(scores) == EVALUATION.score_names
    assert {"kNN", "fine-tune 10%", "fine-tune 10% std", "risk-total", "linear (pixels)"} <= set(scores)
    assert np.isfinite(list(scores.values())).all()
    assert everything() == before
    assert torch.get_rng_state().equal(stream)
    assert EVALUATION(network, SPLITS, CPU, CLASSIFIER) == scores


def test_the_size_of_a_batch_changes_no_score_and_drops_no_image() -> None:
    scores = [name for name in EVERY if not name.startswith("fine-tune")]
    whole = replace(EVALUATION, scores=scores)(encoder(), SPLITS, CPU, CLASSIFIER)
    for batch_size in (1, 7):
        parts = replace(EVALUATION, scores=scores, batch_size=batch_size)(encoder(), SPLITS, CPU, CLASSIFIER)
        assert parts == pytest.approx(whole, abs=1e-4)


def test_the_order_of_the_images_changes_no_neighbour() -> None:
    def shuffled(data: ArrayDataset) -> ArrayDataset:
        order = np.random.default_rng(0).permutation(len(data))
        return ArrayDataset(data.labels[order], data.classes, data.owners, data.examples[order])

    evaluation = replace(EVALUATION, scores=["kNN", "RankMe", "class cosines", "kNN (pixels)"])
    plain = evaluation(encoder(), SPLITS, CPU)
    moved = evaluation(encoder(), Splits(shuffled(SPLITS.train), shuffled(SPLITS.test)), CPU)
    assert moved == pytest.approx(plain, abs=1e-4)


def test_retrieval_is_that_of_the_features_among_training_images() -> None:
    network, views = encoder(), EVALUATION.views()
    bank, queries = (
        image_features(network, ImageSet(data, np.arange(len(data)), views, CPU), 64)
        for data in (SPLITS.train, SPLITS.test)
    )
    scores = replace(EVALUATION, scores=["retrieval", "kNN"], knn_k=1)(network, SPLITS, CPU)
    expected = recall_at(queries, bank, SPLITS.test.labels, SPLITS.train.labels, (1, 5))
    assert (scores["R@1"], scores["R@5"]) == (expected[1], expected[5])
    assert scores["R@1"] == scores["kNN"] <= scores["R@5"]


def test_features_are_taken_once_for_all_scores() -> None:
    splits = Splits(Counting(SPLITS.train), Counting(SPLITS.test))
    shared = ["kNN", "kNN-200", "linear", "calibration", "RankMe", "class cosines", "feature std", "risk"]
    replace(EVALUATION, scores=shared)(encoder(), splits, CPU)
    assert (splits.train.reads, splits.test.reads) == (45, 31)


def test_raw_pixels_are_measured_once_for_one_data_set() -> None:
    splits = Splits(Counting(SPLITS.train), Counting(SPLITS.test))
    pixels = replace(EVALUATION, scores=["kNN (pixels)", "linear (pixels)"])
    first = pixels(encoder(), splits, CPU)
    assert replace(pixels)(encoder(), splits, CPU) == first
    assert (splits.train.reads, splits.test.reads) == (45, 31)
    assert pixels(encoder(), Splits(splits.train, images(31, seed=2)), CPU) != first
    replace(pixels, knn_k=4)(encoder(), splits, CPU)
    assert splits.train.reads == 3 * 45


def test_raw_pixels_are_the_resized_images_in_the_unit_interval() -> None:
    evaluation = replace(EVALUATION, height=10, width=10, scores=["kNN (pixels)"], linear=LinearProbe("ridge"))
    bank, queries = (data.examples.reshape(len(data), -1) / 255 for data in (SPLITS.train, SPLITS.test))
    expected = knn_accuracy(bank, SPLITS.train.labels, queries, SPLITS.test.labels, 3, k=3)
    assert evaluation(encoder(), SPLITS, CPU) == {"kNN (pixels)": expected}


def test_a_limited_evaluation_reads_no_more_than_it_says() -> None:
    splits = Splits(Counting(SPLITS.train), Counting(SPLITS.test))
    replace(EVALUATION, scores=["kNN", "linear"], max_train=12, max_test=7)(encoder(), splits, CPU)
    assert (splits.train.reads, splits.test.reads) == (12, 7)


def test_a_linear_probe_may_see_new_views_in_every_step() -> None:
    probe = LinearProbe("sgd", epochs=2, batch_size=16, augment=True)
    splits = Splits(Counting(SPLITS.train), SPLITS.test)
    replace(EVALUATION, scores=["linear"], linear=probe)(encoder(), splits, CPU)
    assert splits.train.reads == 3 * 45


def test_test_images_in_the_bank_are_found_again() -> None:
    evaluation = replace(EVALUATION, scores=["kNN"], knn_k=1)
    assert evaluation(encoder(), Splits(SPLITS.train, SPLITS.train), CPU) == {"kNN": 1.0}


@pytest.mark.parametrize(("temperature", "winner"), [(0.99 * 0.1 / log(2), 0), (1.01 * 0.1 / log(2), 1), (1e6, 1)])
def test_one_near_neighbour_beats_two_far_ones_below_a_temperature(temperature: float, winner: int) -> None:
    bank = np.array([[s, np.sqrt(1 - s * s)] for s in (0.9, 0.8, 0.8)])
    votes = knn_accuracy(bank, np.array([0, 1, 1]), np.array([[1.0, 0.0]]), np.array([winner]), 3, 20, temperature)
    assert votes == 1.0


def test_a_class_that_no_query_has_still_takes_votes() -> None:
    bank, labels = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), np.array([2, 2, 0])
    assert knn_accuracy(bank, labels, np.array([[1.0, 0.0]]), np.array([0]), 3, k=2) == 0.0


def test_many_equal_neighbours_are_taken_in_the_order_of_the_bank() -> None:
    bank, labels = np.tile([1.0, 0.0], (9, 1)), np.array([1, 1, 0, 0, 0, 0, 0, 0, 0])
    assert knn_accuracy(bank, labels, np.array([[1.0, 0.0]]), np.array([1]), 2, k=3) == 1.0
    assert knn_accuracy(bank, labels, np.array([[1.0, 0.0]]), np.array([0]), 2, k=5) == 1.0


def test_videos_and_empty_data_are_refused() -> None:
    evaluation = replace(EVALUATION, scores=["kNN"])
    with pytest.raises(DataError, match="example 0 has 4 frames"):
        evaluation(encoder(), Splits(images(6, frames=4), SPLITS.test), CPU)
    with pytest.raises(DataError, match="no examples"):
        evaluation(encoder(), Splits(SPLITS.train, images(0)), CPU)


def test_an_encoder_of_videos_may_be_scored_on_images() -> None:
    assert 0 <= replace(EVALUATION, scores=["kNN"])(small3d(width=4), SPLITS, CPU)["kNN"] <= 1


def test_features_that_are_no_numbers_are_said_so() -> None:
    network = encoder()
    torch.nn.init.constant_(network.body[0][0].weight, torch.nan)
    with pytest.raises(FloatingPointError, match="not all finite"):
        replace(EVALUATION, scores=["RankMe"])(network, SPLITS, CPU)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scores", []),
        ("scores", ["kNN", "kNN"]),
        ("scores", ["R@1"]),
        ("scores", ["fine-tune 0%"]),
        ("scores", ["RankMe (pixels)"]),
        ("max_train", 0),
        ("max_test", 0),
        ("batch_size", 0),
        ("knn_k", 0),
        ("knn_temperature", 0.0),
        ("crop_scale", [0.0, 1.0]),
        ("flip", 2.0),
        ("height", 0),
        ("risk_approximation", 1.5),
    ],
)
def test_a_bad_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        ImageEvaluation(**{"height": 8, "width": 8, name: value})


def test_ridge_has_no_probabilities_to_calibrate() -> None:
    with pytest.raises(ValueError, match=r"linear\.mode must be lbfgs or sgd"):
        ImageEvaluation(8, 8, scores=["calibration"], linear=LinearProbe("ridge"))


@pytest.mark.parametrize("option", ["images", "images_full"])
def test_the_configuration_holds_every_setting(option: str) -> None:
    evaluation = build(load([f"evaluation={option}", "data=digits"]), "evaluation")
    written = OmegaConf.to_container(OmegaConf.load(CONF / "evaluation" / f"{option}.yaml"))
    parts = {"": evaluation, **{name: getattr(evaluation, name) for name in ("linear", "fine_tune", "low_density")}}
    for name, part in parts.items():
        settings = written[name] if name else written
        assert settings.keys() - {"_target_"} == {field.name for field in dataclasses.fields(part)}
    assert evaluation.score_names


RUN = ("data=digits", "model=small_resnet", "model.width=2", "objective=vcop", "evaluation=images", "seed=3")
SMALL = ("evaluation.max_train=60", "evaluation.max_test=40", "evaluation.height=8", "evaluation.width=8")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The directory of a run whose encoder differs from its beginning in one layer."""
    config = load([*RUN, *SMALL])
    with torch_stream(3, "init"):
        network = build(config, "model")
    tensors = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    tensors["body.0.1.bias"] += 0.5
    (tmp_path / "config.yaml").write_text(config.text)
    (tmp_path / "encoder.safetensors").write_bytes(save(tensors))
    return tmp_path


def test_a_finished_run_is_evaluated_beside_its_beginning(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = evaluate_run(run_dir)
    assert list(comparison.trained) == list(comparison.untrained) == ["kNN", "linear", "RankMe"]
    assert comparison.trained != comparison.untrained
    assert main([str(run_dir)]) == 0
    shown = capsys.readouterr().out
    assert "difference" in shown
    assert f"{comparison.trained['RankMe']:.3f}" in shown
    assert f"{comparison.untrained['RankMe']:.3f}" in shown


def test_the_encoder_it_began_with_is_that_of_the_run(run_dir: Path) -> None:
    config = load_run((run_dir / "config.yaml").read_text(), ())
    workspace = Workspace(config)
    begun = {name: value for name, value in workspace.initial.items() if name.startswith("backbone.")}
    with torch_stream(config.seed, "init"):
        network = build(config, "model")
    alone = {f"backbone.{name}": value.numpy() for name, value in network.state_dict().items()}
    assert sha256(alone) == sha256(begun)


def test_an_encoder_goes_to_other_data_and_other_scores(run_dir: Path) -> None:
    words = ["data=moving_digits", "data.num_train=6", "data.num_test=4", "data.num_frames=4", "data.num_classes=2"]
    scores = evaluate_run(run_dir, [*words, "evaluation=video", "evaluation.ks=[1]"])
    assert list(scores.trained) == ["R@1", "kNN"]
    other = evaluate_run(run_dir, ["data.seed=1", 'evaluation.scores=[linear, "fine-tune 1%"]'])
    assert list(other.trained) == ["linear", "fine-tune 1%"]


def test_a_stored_configuration_is_the_run_again(run_dir: Path) -> None:
    text = (run_dir / "config.yaml").read_text()
    assert load_run(text, ()).text == text
    changed = load_run(text, ["seed=4", "evaluation=images_full", "evaluation.knn_k=7"])
    assert (changed.seed, changed.components["evaluation"]["knn_k"]) == (4, 7)
    assert changed.components["evaluation"]["height"] == 32
    assert changed.components["data"] == load(RUN).components["data"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data=nothing"], "data=nothing: no such option"),
        (["evaluation.what=1"], "evaluation.what=1: no such setting"),
        (["evaluation.knn_k=0"], "evaluation.knn_k=0: must be at least 1"),
        (["evaluation.knn_k=many"], "evaluation.knn_k=many: must be a whole number"),
        (["evaluation"], "evaluation: not of the form key=value"),
        (["experiment=quickstart"], "experiment=quickstart: no such setting"),
        (["evaluation=none"], "evaluation=none: has no scores"),
        (["data.channels=3"], "data: examples of 3 channels"),
        (["data=video_folder"], "data.root=???: must be given"),
    ],
)
def test_a_bad_word_is_one_line_and_status_2(
    run_dir: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_dir), *words]) == 2
    said = capsys.readouterr()
    assert line in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("config.yaml", None, "it has no config.yaml"),
        ("encoder.safetensors", None, "it has no encoder.safetensors"),
        ("config.yaml", b"rounds: 3\n", "the configuration has no"),
        ("config.yaml", b"a: [", "while parsing"),
        ("config.yaml", b"[1]", "the configuration has no"),
        ("encoder.safetensors", b"nothing", "cannot be read"),
        ("encoder.safetensors", save({"body.0.0.weight": np.zeros(3)}), "does not fit the model"),
        ("encoder.safetensors", save({"strange": np.zeros(3)}), "does not fit the model"),
    ],
)
def test_what_is_not_a_finished_run_is_one_line_and_status_2(
    run_dir: Path, name: str, content: bytes | None, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / name).unlink()
    if content is not None:
        (run_dir / name).write_bytes(content)
    assert main([str(run_dir)]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


def test_no_directory_at_all_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere: is not the directory of a finished run" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is not the directory"):
        evaluate_run(tmp_path)
