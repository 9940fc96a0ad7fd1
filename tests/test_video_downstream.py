"""Classifiers on encoders of videos: a linear probe of clips and fine-tuning, each answering for whole videos."""

import dataclasses
from dataclasses import dataclass, field, replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.numpy import load_file, save
from torch import Tensor, nn

from fedssl.arrays import sha256
from fedssl.compose import CONF, load
from fedssl.config import build
from fedssl.data.arrays import ArrayDataset
from fedssl.data.dataset import Splits
from fedssl.evaluation.__main__ import main
from fedssl.evaluation.features import ClipProtocol, Pooled, mean_probability, video_features
from fedssl.evaluation.fine_tune import FineTune
from fedssl.evaluation.image_set import Views
from fedssl.evaluation.linear_probe import LinearMap, LinearProbe, standardisation
from fedssl.evaluation.video import SCORES, VideoEvaluation
from fedssl.evaluation.video_set import VideoSet
from fedssl.models.encoder import Encoder
from fedssl.models.small3d import small3d
from fedssl.seeding import torch_stream

CPU = torch.device("cpu")
EVALUATION = VideoEvaluation(
    height=8,
    width=8,
    scores=SCORES,
    ks=[1, 5],
    num_clips=3,
    clip_frames=4,
    linear=LinearProbe(l2=[0.1, 0.01]),
    fine_tune=FineTune(steps=6, batch_size=8, repeats=1),
)


def videos(number: int, contrast: int = 100, seed: int = 0) -> ArrayDataset:
    """Return noise of 6 frames; those of the second class are brighter by `contrast`."""
    labels = np.arange(number) % 2
    pixels = np.random.default_rng(seed).integers(0, 100, (number, 6, 8, 8, 1)) + contrast * labels.reshape(
        -1, 1, 1, 1, 1
    )
    return ArrayDataset(labels, ("dark", "bright"), ("",) * number, pixels.astype(np.uint8))


def video_set(
    dataset: ArrayDataset, crop: float = 0.5, num_clips: int = 3, clip_frames: int = 4, clip_stride: int = 1
) -> VideoSet:
    protocol = ClipProtocol(num_clips, clip_frames, 8, 8, "avg", clip_stride)
    return VideoSet(dataset, np.arange(len(dataset)), protocol, Views.of(8, 8, (crop, 1.0), 0.5, seed=0), CPU)


def encoder() -> Encoder:
    with torch_stream(0, "test"):
        return small3d(1, width=2)


def state(module: nn.Module) -> str:
    return sha256({name: value.numpy() for name, value in module.state_dict().items()})


SPLITS = Splits(videos(12), videos(7, seed=1))
HARD = Splits(videos(24, contrast=15), videos(41, contrast=15, seed=1))


class Brightness(nn.Module):
    """Logits `(x log 3, 0)` of clips whose mean pixel is x."""

    def forward(self, clips: Tensor) -> Tensor:
        mean = clips.mean(dim=(1, 2, 3, 4))
        return torch.stack((mean * log(3), 0 * mean), dim=1)


@dataclass(frozen=True, slots=True)
class Watched(VideoSet):
    """Videos that remember what they were asked about with."""

    seen: list[str] = field(default_factory=list)

    def answers(self, classifier: nn.Module, batch_size: int) -> np.ndarray:
        self.seen.append(state(classifier.encoder))
        return np.eye(2, dtype=np.float32)[self.labels]


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_classes_of_another_brightness_are_told_apart_by_both(pool: str) -> None:
    evaluation = replace(EVALUATION, scores=["linear", "fine-tune"], pool=pool, fine_tune=FineTune(40, 8, repeats=1))
    assert evaluation(encoder(), SPLITS, CPU) == {"linear": 1.0, "fine-tune": 1.0}


def test_the_answer_for_a_video_is_the_mean_of_the_probabilities_of_its_clips() -> None:
    # two frames, black and white, are two clips: softmax(0, 0) = (1/2, 1/2) and softmax(log 3, 0) = (3/4, 1/4)
    frames = np.array([0, 255], np.uint8).reshape(1, 2, 1, 1, 1)
    one = video_set(ArrayDataset(np.zeros(1, np.int64), ("a", "b"), ("",), frames), num_clips=2, clip_frames=1)
    np.testing.assert_allclose(one.answers(Brightness(), 8), [[5 / 8, 3 / 8]], rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 10, 64])
def test_ten_clips_are_averaged_whatever_the_batch(batch_size: int) -> None:
    dataset = videos(5)
    starts = [int(start) for start in np.linspace(0, 4, 10)]  # clips of 2 of the 6 frames
    means = np.stack([dataset.examples[:, start : start + 2].mean(axis=(1, 2, 3, 4)) / 255 for start in starts])
    expected = (3**means / (3**means + 1)).mean(axis=0)
    answers = video_set(dataset, num_clips=10, clip_frames=2).answers(Brightness(), batch_size)
    np.testing.assert_allclose(answers, np.stack([expected, 1 - expected], axis=1), rtol=1e-5)


def test_probabilities_are_averaged_and_not_logits() -> None:
    # differences 3, -1, -1 of the logits: their mean is above 0, but 0.953, 0.269 and 0.269 have a mean below 1/2
    clips = torch.tensor([[[3.0], [-1.0], [-1.0]]])
    assert mean_probability(torch.cat((clips, 0 * clips), dim=2))[0, 0] == pytest.approx(0.4968, abs=1e-4)
    answers = LinearMap(torch.tensor([[1.0, 0.0]]), torch.zeros(2))
    assert answers.accuracy(clips, torch.tensor([1])) == 1.0
    assert answers.accuracy(clips.mean(dim=1), torch.tensor([1])) == 0.0


@pytest.mark.parametrize("mode", ["lbfgs", "ridge"])
def test_videos_of_equal_clips_give_the_probe_of_one_clip(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 30, generator=generator), torch.randint(2, (40,), generator=generator)
    clips, probe = features[:, None].expand(-1, 5, -1), LinearProbe(mode, l2=[1e-4, 1.0])
    # random labels, learned by heart: were a clip of each video held out, the weakest penalty would answer for all
    assert probe.choose(clips, labels, 2, 0) == probe.choose(features, labels, 2, 0)
    whole = probe.fit(features, labels, 2, 0)(features)
    torch.testing.assert_close(probe.fit(clips, labels, 2, 0)(features), whole, rtol=0, atol=1e-4)


def test_the_probe_learns_from_single_clips() -> None:
    network, probe = encoder(), LinearProbe(l2=[0.01])
    train, test = (
        video_set(split).encoded(Pooled(network, "avg"), 64, lambda clips: clips) for split in (HARD.train, HARD.test)
    )
    labels = torch.from_numpy(HARD.train.labels.repeat(3))
    fitted = probe.fit(torch.from_numpy(train).flatten(0, 1), labels, 2, 0)
    answers = fitted(torch.from_numpy(test)).softmax(dim=2).mean(dim=1).argmax(dim=1)
    expected = (answers.numpy() == HARD.test.labels).mean()
    assert replace(EVALUATION, scores=["linear"], linear=probe)(network, HARD, CPU) == {"linear": expected}
    assert 0.5 < expected < 1.0


def test_every_score_is_named_and_the_same_again_and_leaves_the_encoder_as_it_was() -> None:
    network = encoder().train()
    network.body[1].eval()

    def everything() -> tuple[str, list[bool], list[bool]]:
        modes = [module.training for module in network.modules()]
        return state(network), modes, [parameter.requires_grad for parameter in network.parameters()]

    before, stream = everything(), torch.get_rng_state()
    evaluation = replace(EVALUATION, fine_tune=FineTune(6, 8, repeats=2))
    scores = evaluation(network, HARD, CPU)
    assert tuple(scores) == evaluation.score_names == ("R@1", "R@5", "kNN", "linear", "fine-tune", "fine-tune std")
    assert everything() == before
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.get_rng_state().equal(stream)
    torch.manual_seed(5)
    assert evaluation(network, HARD, CPU) == scores


def test_retrieval_and_neighbours_do_not_depend_on_the_other_scores() -> None:
    alone = VideoEvaluation(8, 8, ks=[1, 5], num_clips=3, clip_frames=4)
    assert alone.score_names == ("R@1", "R@5", "kNN")
    scores = replace(EVALUATION, scores=["linear", "kNN", "retrieval"])(encoder(), HARD, CPU)
    assert list(scores) == ["linear", "kNN", "R@1", "R@5"]
    assert alone(encoder(), HARD, CPU).items() <= scores.items()


def test_the_size_of_a_batch_changes_no_score() -> None:
    evaluation = replace(EVALUATION, scores=["retrieval", "kNN", "linear"])
    whole = evaluation(encoder(), HARD, CPU)
    for batch_size in (1, 7):
        assert replace(evaluation, batch_size=batch_size)(encoder(), HARD, CPU) == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_the_copy_of_the_encoder_changes_only_if_it_learns_and_to_the_same_bits(factor: float) -> None:
    network, train = encoder(), video_set(HARD.train)
    watched = Watched(train.dataset, train.indices, train.protocol, train.views, CPU)
    standard = standardisation(torch.from_numpy(video_features(network, HARD.train, train.protocol, 64, CPU)))
    tuned = FineTune(3, 8, encoder_factor=factor, repeats=1)
    for seed in (0, 0, 1):
        assert tuned.accuracies(network, train, watched, "100%", standard, seed) == [1.0]
    first, again, other = watched.seen
    assert first == again
    assert (first == state(network)) == (other == first) == (factor == 0)


def test_a_view_is_a_part_of_its_video_and_has_no_neighbours() -> None:
    everything = video_set(HARD.train)
    together = everything.view(np.arange(9), "name", 1)
    assert together.shape == (9, 1, 4, 8, 8)
    alone = everything.subset(np.array([7, 4])).view(np.array([1]), "name", 1)
    assert alone[0].equal(together[4])
    assert not everything.view(np.arange(9), "name", 2).equal(together)


def test_views_that_keep_the_frame_begin_wherever_a_clip_fits() -> None:
    frames = np.arange(6, dtype=np.uint8).reshape(1, 6, 1, 1, 1).repeat(50, axis=0) * 10
    dataset = ArrayDataset(np.zeros(50, np.int64), ("a",), ("",) * 50, frames)
    for everything, begins, steps in (
        (video_set(dataset, crop=1.0), range(3), (0, 1, 2, 3)),
        (video_set(dataset, crop=1.0, clip_frames=2, clip_stride=4), range(2), (0, 4)),
    ):
        clips = (everything.view(np.arange(50))[:, 0, :, 0, 0] * 25.5).round()
        assert {tuple(clip.tolist()) for clip in clips} == {tuple(begin + step for step in steps) for begin in begins}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scores", []),
        ("scores", ["kNN", "kNN"]),
        ("scores", ["R@1"]),
        ("scores", ["fine-tune 10%"]),
        ("crop_scale", [0.0, 1.0]),
        ("flip", 2.0),
        ("height", 0),
    ],
)
def test_a_bad_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        VideoEvaluation(**{"height": 8, "width": 8, name: value})


def test_features_that_are_no_numbers_are_said_so() -> None:
    network = encoder()
    torch.nn.init.constant_(network.body[0][0].weight, torch.nan)
    with pytest.raises(FloatingPointError, match="not all finite"):
        replace(EVALUATION, scores=["linear"])(network, SPLITS, CPU)


@pytest.mark.parametrize("option", ["video", "video_full"])
def test_the_configuration_holds_every_setting(option: str) -> None:
    evaluation = build(load([f"evaluation={option}"]), "evaluation")
    written = OmegaConf.to_container(OmegaConf.load(CONF / "evaluation" / f"{option}.yaml"))
    for name, part in {"": evaluation, "linear": evaluation.linear, "fine_tune": evaluation.fine_tune}.items():
        settings = written[name] if name else written
        assert settings.keys() - {"_target_"} == {each.name for each in dataclasses.fields(part)}
    recalls = ("R@1", "R@5", "R@10", "R@20", "R@50", "kNN")
    assert evaluation.score_names == recalls + (("linear", "fine-tune") if option == "video_full" else ())


DATA = ("data.num_train=24", "data.num_test=8", "data.num_frames=6", "data.num_classes=2", "data.size=8")
SMALL = ("evaluation.clip_frames=4", "evaluation.ks=[1]", "evaluation.fine_tune.steps=4")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The directory of a run whose encoder differs from its beginning in one layer."""
    config = load([*DATA, "model.width=2", "height=8", "width=8"])
    with torch_stream(0, "init"):
        network = build(config, "model")
    tensors = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    tensors["body.0.1.bias"] += 0.5
    (tmp_path / "config.yaml").write_text(config.text)
    (tmp_path / "encoder.safetensors").write_bytes(save(tensors))
    return tmp_path


def test_one_command_scores_a_finished_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "evaluation=video_full", *SMALL]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "." in line]
    assert [line[0] for line in lines] == ["R@1", "kNN", "linear", "fine-tune"]
    assert all(0 <= float(number) <= 1 for line in lines for number in line[1:3])


def test_an_encoder_that_diverged_is_one_line_and_status_2(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(run_dir / "encoder.safetensors")
    (run_dir / "encoder.safetensors").write_bytes(
        save({**tensors, "body.0.0.weight": tensors["body.0.0.weight"] * np.nan})
    )
    assert main([str(run_dir), *SMALL]) == 2
    assert capsys.readouterr().err == "the features of the encoder are not all finite numbers\n"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("evaluation.scores=[accuracy]", "evaluation.scores=accuracy: must be among retrieval, kNN, linear, fine-tune"),
        ("evaluation.linear.mode=ridge", "evaluation.linear.mode=ridge: must be lbfgs or sgd for videos"),
        ("evaluation.linear.augment=true", "evaluation.linear.augment=true: must be false for videos"),
        (
            "evaluation.num_clips=null",
            "evaluation.num_clips=null: must be a number of at least 1 with linear or fine-t",
        ),
        ("evaluation.fine_tune.batch_size=2", "must be at least 3"),
        ("evaluation.flip=2", "must be between 0 and 1"),
    ],
)
def test_a_bad_word_is_one_line_and_status_2(
    run_dir: Path, word: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_dir), "evaluation=video_full", word]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert line in said.err
    assert said.out == ""
