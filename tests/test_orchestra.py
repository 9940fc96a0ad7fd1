"""Orchestra: clusters of equal size on clients and on the server, and what goes between them."""

from dataclasses import replace
from functools import partial
from itertools import permutations
from math import cos, exp, hypot, log, sin
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import batch_of
from flwr.app import Message, RecordDict
from test_resume import interrupt_after
from test_runs import TINY, result
from torch import Tensor, nn
from torch.nn import functional as F

from clients.local_training import Work
from clients.orchestra import OrchestraTraining
from fedssl.data.arrays import ArrayDataset
from fedssl.memory import Memory
from fedssl.models import bundle
from fedssl.models.image import small_resnet
from fedssl.objectives.clustering import (
    assignment_loss,
    centroid_loss,
    equal_clusters,
    learn_centroids,
    local_centroids,
)
from fedssl.objectives.cvrl import Cvrl
from fedssl.objectives.objective import Batch
from fedssl.objectives.orchestra import Orchestra, rotated
from fedssl.objectives.sinkhorn import sinkhorn
from fedssl.simulation.grid import identify
from fedssl.training.augment import ClipAugmentation
from fedssl.training.loop import Examples
from fedssl.wire import LocalUpdate, TrainTask, write_update
from simulate import main
from strategies.base import Plan
from strategies.orchestra import Orchestra as OrchestraServer
from strategies.replies import read_sound

TEMPERATURE, EPSILON, ITERATIONS = 0.1, 0.04, 10
OBJECTIVE = Orchestra(num_centroids=3, hidden=8, dim=4, bank_size=8)
PLAN = Plan(rounds=3, seed=0, num_clients=2, cohort=None, quorum=1)
CURRENT = {"backbone.w": np.array([1.0, 2.0], np.float32)}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def on_the_sphere(rows: Tensor) -> bool:
    return bool(torch.allclose(rows.norm(dim=1), torch.ones(len(rows), dtype=rows.dtype), atol=1e-6))


# The client's loss


def test_equal_centroids_cost_the_log_of_their_number() -> None:
    same = torch.tensor([[0.6, 0.8]], dtype=torch.float64).expand(7, 2)
    assert assignment_loss(drawn(5, 2), drawn(5, 2, seed=1), same, TEMPERATURE).item() == pytest.approx(
        log(7), abs=1e-9
    )


def test_embeddings_of_zeros_cost_the_log_of_the_centroids() -> None:
    zeros = torch.zeros(2, 4, dtype=torch.float64)
    assert assignment_loss(zeros, zeros, torch.eye(4).double(), TEMPERATURE).item() == pytest.approx(log(4), abs=1e-9)


def test_embeddings_on_orthonormal_centroids_cost_the_entropy_of_an_assignment() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    near = exp(10) / (exp(10) + 3)
    far = (1 - near) / 3
    expected = -near * log(near) - 3 * far * log(far)
    assert assignment_loss(5 * eye, 2 * eye, eye, TEMPERATURE).item() == pytest.approx(expected, abs=1e-9)


def test_the_clients_loss_is_that_of_a_slow_loop_and_reaches_the_student_alone() -> None:
    student, teacher = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1).requires_grad_()
    centroids = F.normalize(drawn(5, 4, seed=2), dim=1)

    def shares(row: Tensor) -> list[float]:
        values = [exp((row @ centroid).item() / row.norm().item() / TEMPERATURE) for centroid in centroids]
        return [value / sum(values) for value in values]

    losses = [-sum(p * log(q) for p, q in zip(shares(teacher[i]), shares(student[i]), strict=True)) for i in range(3)]
    loss = assignment_loss(student, teacher, centroids, TEMPERATURE)
    assert loss.item() == pytest.approx(sum(losses) / 3, abs=1e-9)
    loss.backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda rows: assignment_loss(rows, teacher, centroids, TEMPERATURE), student)


# Clusters of equal size


def test_the_surest_examples_choose_first() -> None:
    plan = torch.tensor([[0.7, 0.3], [0.8, 0.2], [0.9, 0.1], [0.4, 0.6]])
    assert equal_clusters(plan).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(("examples", "sizes"), [(12, [3, 3, 3, 3]), (10, [2, 2, 3, 3]), (4, [1, 1, 1, 1])])
def test_clusters_differ_in_size_by_at_most_one_wherever_features_lie(examples: int, sizes: list[int]) -> None:
    for seed in range(20):
        features = F.normalize(drawn(examples, 3, seed=seed) + 10, dim=1)  # nearly all the same
        plan = sinkhorn(features @ features[:4].T, EPSILON, 1)
        assert sorted(torch.bincount(equal_clusters(plan), minlength=4).tolist()) == sizes


def test_likeliest_clusters_of_equal_size_are_taken_as_they_are() -> None:
    wanted = torch.tensor([2, 0, 1, 1, 0, 2])
    plan = torch.softmax(drawn(6, 3), dim=1) + 2 * F.one_hot(wanted, 3)
    assert torch.equal(equal_clusters(plan), wanted)


def test_as_many_clusters_as_features_are_the_features() -> None:
    features = F.normalize(drawn(5, 3), dim=1)
    centroids = local_centroids(features, 5, 5, EPSILON, ITERATIONS, np.random.default_rng(0))
    assert any(torch.allclose(centroids[list(order)], features, atol=1e-9) for order in permutations(range(5)))


@pytest.mark.parametrize("seed", range(5))
def test_two_poles_are_found_from_any_two_examples(seed: int) -> None:
    pole = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64)
    features = torch.cat((pole.expand(4, 3), -pole.expand(4, 3)))
    centroids = local_centroids(features, 2, 5, EPSILON, ITERATIONS, np.random.default_rng(seed))
    torch.testing.assert_close(centroids[centroids[:, 0].argsort()], torch.cat((-pole, pole)))


def test_a_centroid_is_the_mean_direction_of_its_equal_share() -> None:
    angles = [0.0, 0.2, 2.0, 2.4]
    features = torch.tensor([[cos(angle), sin(angle)] for angle in angles], dtype=torch.float64)
    centroids = local_centroids(features, 2, 5, EPSILON, 100, np.random.default_rng(0))
    expected = []
    for one, other in ((0, 1), (2, 3)):
        x, y = cos(angles[one]) + cos(angles[other]), sin(angles[one]) + sin(angles[other])
        expected.append([x / hypot(x, y), y / hypot(x, y)])
    found = centroids[centroids[:, 0].argsort(descending=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_fewer_features_than_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="local_clusters must be at most the 3 features of a client, got 4"):
        local_centroids(torch.eye(3), 4, 5, EPSILON, ITERATIONS, np.random.default_rng(0))


# The server's centroids


def test_centroids_on_orthonormal_features_cost_a_known_cosine() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    one, other = exp(-25) / (1 + 3 * exp(-25)), exp(-10) / (1 + 3 * exp(-10))
    product = (1 - 3 * one) * (1 - 3 * other) + 3 * one * other
    lengths = hypot(1 - 3 * one, 3**0.5 * one) * hypot(1 - 3 * other, 3**0.5 * other)
    loss = centroid_loss(eye, 3 * eye, TEMPERATURE, EPSILON, ITERATIONS)
    assert loss.item() == pytest.approx(-product / lengths, abs=1e-9)


def test_the_centroids_loss_is_that_of_a_slow_loop_and_its_gradient_leaves_the_equal_assignment_alone() -> None:
    features, centroids = drawn(6, 3), F.normalize(drawn(4, 3, seed=1), dim=1).requires_grad_()
    plan = sinkhorn(F.normalize(features, dim=1) @ centroids.T, EPSILON, ITERATIONS)
    losses = []
    for row, equal in zip(features, plan, strict=True):
        values = [exp((row @ centroid).item() / row.norm().item() / TEMPERATURE) for centroid in centroids]
        nearest = [value / sum(values) for value in values]
        product = sum(float(p) * q for p, q in zip(equal, nearest, strict=True))
        losses.append(-product / hypot(*map(float, equal)) / hypot(*nearest))
    loss = centroid_loss(centroids, features, TEMPERATURE, EPSILON, ITERATIONS)
    assert loss.item() == pytest.approx(sum(losses) / 6, abs=1e-9)

    def frozen(rows: Tensor) -> Tensor:
        nearest = torch.softmax(F.normalize(features, dim=1) @ rows.T / TEMPERATURE, dim=1)
        return -F.cosine_similarity(plan, nearest, dim=1).mean()

    expected = torch.autograd.grad(frozen(centroids), centroids)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, centroids)[0], expected)
    assert torch.autograd.gradcheck(frozen, centroids)


def test_learning_lowers_the_loss_and_stays_on_the_sphere() -> None:
    features, begin = F.normalize(drawn(40, 6), dim=1), drawn(8, 6, seed=1)
    loss = partial(centroid_loss, features=features, temperature=TEMPERATURE, epsilon=EPSILON, sinkhorn_iterations=50)
    losses = [loss(F.normalize(begin, dim=1)).item()]
    for steps in (20, 200):
        learned = learn_centroids(begin, features, steps, 0.01, TEMPERATURE, EPSILON, ITERATIONS)
        assert on_the_sphere(learned)
        losses.append(loss(learned).item())
    assert losses[0] - losses[1] > 0.01
    assert losses[1] > losses[2]


def test_centroids_of_one_direction_are_at_rest() -> None:
    same = torch.tensor([[0.6, 0.8]], dtype=torch.float64).expand(3, 2)
    assert centroid_loss(same, drawn(5, 2), TEMPERATURE, EPSILON, ITERATIONS).item() == pytest.approx(-1, abs=1e-9)
    learned = learn_centroids(2 * same, drawn(5, 2), 3, 0.01, TEMPERATURE, EPSILON, ITERATIONS)
    torch.testing.assert_close(learned, same)


# The objective


def model(objective: Orchestra = OBJECTIVE) -> nn.ModuleDict:
    bundled = bundle.build_bundle(lambda: small_resnet(in_channels=1, width=4), objective, seed=0)
    objective.begin_round(bundled, first=True)
    return bundled


def some_batch(number: int = 6) -> Batch:
    views = torch.rand(3, number, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return batch_of(*views, uniforms=torch.linspace(0, 0.99, number, dtype=torch.float64)[:, None])


def with_centroids(bundled: nn.ModuleDict, rows: Tensor | None = None) -> nn.ModuleDict:
    bundled["centroids"].weight.copy_(torch.eye(4)[:3] if rows is None else rows)
    return bundled


def test_uniform_assignments_and_answers_cost_both_logs() -> None:
    bundled = with_centroids(model(), torch.ones(3, 4) / 2)
    nn.init.zeros_(bundled["head"].weight)
    nn.init.zeros_(bundled["head"].bias)
    step = OBJECTIVE.step(bundled, some_batch())
    assert step.loss.item() == pytest.approx(log(3) + log(4), abs=1e-5)
    assert step.metrics["clustering"] == pytest.approx(log(3), abs=1e-5)
    assert step.metrics["rotation"] == pytest.approx(log(4), abs=1e-5)
    assert {"accuracy", "embedding-std", "embedding-rank", "embedding-cosine"} < set(step.metrics)


def test_a_step_moves_the_student_towards_the_teachers_features_which_the_bank_keeps() -> None:
    bundled, batch = with_centroids(model()), some_batch()
    expected = OBJECTIVE.features(bundled, batch.views[0])
    OBJECTIVE.step(bundled, batch).loss.backward()
    torch.testing.assert_close(OBJECTIVE.bank(bundled).rows(), expected)
    assert on_the_sphere(expected)
    received = {name.split(".")[0] for name, tensor in bundled.named_parameters() if tensor.grad is not None}
    assert received == {"backbone", "projector", "head"}
    assert set(bundled) - received - OBJECTIVE.contract.private_groups == set()


def test_the_teacher_keeps_its_momentum_and_takes_the_rest_of_the_student() -> None:
    bundled = model()
    teacher, student = bundled["teacher"]["projector"][0].weight, bundled["projector"][0].weight
    with torch.no_grad():
        student.add_(1.0)
    OBJECTIVE.after_step(bundled, 0.5)
    torch.testing.assert_close(student - teacher, torch.full_like(student, 0.996))  # 0.004 the other way round
    OBJECTIVE.begin_round(bundled, first=False)
    assert torch.equal(teacher, student)


def test_a_view_is_turned_by_its_own_number_of_right_angles() -> None:
    view = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 1, 2, 2)
    turned = rotated(view.expand(4, 1, 1, 2, 2), torch.tensor([3, 0, 1, 2])).flatten(1)
    assert turned.tolist() == [[3, 1, 4, 2], [1, 2, 3, 4], [2, 4, 1, 3], [4, 3, 2, 1]]


@pytest.mark.parametrize(("norm", "least"), [("batch", 2), ("none", 1)])
def test_the_smallest_batch_has_a_finite_loss(norm: str, least: int) -> None:
    objective = Orchestra(num_centroids=3, hidden=8, dim=4, norm=norm)
    assert objective.min_batch == least
    assert torch.isfinite(objective.step(with_centroids(model(objective)), some_batch(least)).loss)


def test_training_without_centroids_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no centroids; choose client=orchestra and strategy=orchestra"):
        OBJECTIVE.step(model(), some_batch())


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("num_centroids", 0, "at least 1"),
        ("bank_size", 0, "at least 1"),
        ("temperature", 0.0, "above 0"),
        ("momentum", 1.5, "between 0 and 1"),
        ("rotation_weight", -1.0, "0 or more"),
    ],
)
def test_a_bad_setting_of_the_objective_is_named(name: str, value: float, text: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*{text}, got {value}"):
        Orchestra(**{name: value})


# The client

TRAINING = OrchestraTraining(partial(torch.optim.SGD, lr=0.01), batch_size=4, local_clusters=3)


def examples(number: int = 6) -> Examples:
    pixels = np.random.default_rng(0).integers(0, 256, (number, 1, 8, 8, 1), np.uint8)
    dataset = ArrayDataset(np.zeros(number, np.int64), ("one",), ("",) * number, pixels)
    return Examples(dataset, np.arange(number), ClipAugmentation(8, 8))


def task(bundled: nn.ModuleDict, centroids: np.ndarray | None, round_number: int = 1) -> TrainTask:
    extras = {"centroids": {} if centroids is None else {"weight": centroids}}
    arrays = bundle.arrays(bundled, ["backbone", "projector", "head"])
    return TrainTask(round_number, 3, 0, arrays, extras=extras)


def test_without_centroids_a_client_only_clusters_with_the_model_that_came() -> None:
    bundled = model()
    asked = task(bundled, None)
    outcome = TRAINING.train(Work(bundled, OBJECTIVE, examples(), asked, partition=0))
    after = bundle.arrays(bundled, None)
    assert all(np.array_equal(array, after[name]) for name, array in asked.arrays.items())
    assert outcome.metrics == {}
    local = outcome.sent["centroids"]["local"]
    assert (local.shape, local.dtype) == ((3, 4), np.float32)
    assert on_the_sphere(torch.tensor(local))
    assert len(OBJECTIVE.bank(bundled)) == 6  # 4 and 2 of them


def test_a_client_trains_towards_the_centroids_that_came_and_sends_its_own() -> None:
    bundled = model()
    asked = task(bundled, np.eye(4, dtype=np.float32)[:3], round_number=2)
    bundle.load(bundled, TRAINING.begin(bundle.arrays(bundled, None), None, asked))
    assert torch.equal(bundled["centroids"].weight, torch.eye(4)[:3])
    outcome = TRAINING.train(Work(bundled, OBJECTIVE, examples(), asked, partition=0))
    assert outcome.metrics["num-steps"] == 2
    assert not np.array_equal(bundle.arrays(bundled, None)["head.weight"], asked.arrays["head.weight"])
    assert outcome.sent["centroids"]["local"].shape == (3, 4)
    assert len(OBJECTIVE.bank(bundled)) == 8  # 6 of the first look, 6 of training: the latest


def test_a_client_that_remembers_a_bank_does_not_fill_it_again() -> None:
    bundled = model()
    OBJECTIVE.bank(bundled).write(torch.eye(4))
    TRAINING.train(Work(bundled, OBJECTIVE, examples(), task(bundled, None), partition=0, memory=Memory()))
    assert torch.equal(OBJECTIVE.bank(bundled).rows(), torch.eye(4))


def test_what_does_not_go_together_is_refused_by_name() -> None:
    bundled = model()
    with pytest.raises(ValueError, match="the server sends no centroids; choose strategy=orchestra"):
        TRAINING.begin({}, None, replace(task(bundled, None), extras={}))
    with pytest.raises(ValueError, match="client=orchestra needs objective=orchestra, got Cvrl"):
        TRAINING.train(Work(bundled, Cvrl(), examples(), task(bundled, None), partition=0))
    with pytest.raises(ValueError, match="local_clusters must be at most the 2 features"):
        TRAINING.train(Work(bundled, OBJECTIVE, examples(2), task(bundled, None), partition=0))
    with pytest.raises(ValueError, match=r"centroids\.weight must have shape \(3, 4\), got \(5, 4\)"):
        bundle.load(bundled, TRAINING.begin({}, None, task(bundled, np.zeros((5, 4), np.float32))))


@pytest.mark.parametrize("name", ["local_clusters", "cluster_iterations", "sinkhorn_iterations", "epsilon"])
def test_a_bad_setting_of_the_client_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got 0"):
        replace(TRAINING, **{name: 0})


# The server


def server() -> OrchestraServer:
    return OrchestraServer(num_centroids=3, dim=4, local_clusters=2, steps=5)


def updates(local: np.ndarray | None = None) -> list[LocalUpdate]:
    made = []
    for partition, (value, number) in enumerate([(1.0, 10), (3.0, 30)]):
        rows = F.normalize(drawn(2, 4, seed=partition), dim=1).float().numpy() if local is None else local
        arrays = {"backbone.w": np.full(2, value, np.float32)}
        made.append(LocalUpdate(partition, 1, arrays, number, {}, {"centroids": {"local": rows}}))
    return made


def test_a_round_gives_the_mean_and_centroids_that_travel_from_then_on() -> None:
    strategy = server()
    assert strategy.task(CURRENT, 1, PLAN).extras == {"centroids": {}}
    merged = strategy.merge(CURRENT, iter(updates()), 1)
    assert merged["backbone.w"] == pytest.approx([2.5, 2.5])  # (10 * 1 + 30 * 3) / 40
    sent = strategy.task(merged, 2, PLAN).extras["centroids"]["weight"]
    assert (sent.shape, sent.dtype) == ((3, 4), np.float32)
    assert on_the_sphere(torch.tensor(sent))


def test_clients_that_trained_nothing_leave_the_model_as_it_was() -> None:
    exact = {"backbone.w": np.random.default_rng(0).standard_normal(1000).astype(np.float32)}
    same = [replace(update, arrays=exact) for update in updates()]
    strategy = server()
    strategy.task(exact, 1, PLAN)
    assert np.array_equal(strategy.merge(exact, iter(same), 1)["backbone.w"], exact["backbone.w"])


def test_centroids_depend_on_the_seed_and_go_on_from_a_saved_state() -> None:
    def learned(seed: int, rounds: int, strategy: OrchestraServer) -> np.ndarray:
        for number in range(1, rounds + 1):
            strategy.task(CURRENT, number, replace(PLAN, seed=seed))
            strategy.merge(CURRENT, iter(updates()), number)
        return strategy.task(CURRENT, rounds + 1, PLAN).extras["centroids"]["weight"]

    first = server()
    once = learned(0, 1, first)
    assert not np.array_equal(once, learned(1, 1, server()))
    assert server().state() == {}
    going_on = server()
    going_on.restore(first.state(), CURRENT)
    assert np.array_equal(learned(7, 1, going_on), learned(0, 2, server()))  # the seed only begins


def test_malformed_centroids_are_refused_by_name() -> None:
    identify()
    asked = Message(RecordDict(), 1, "train")

    def reason(extras: dict[str, dict[str, np.ndarray]]) -> str:
        reply = Message(write_update(replace(updates()[0], arrays=CURRENT, extras=extras)), reply_to=asked)
        with pytest.raises(ValueError, match=r"centroids|local") as caught:
            read_sound(reply, 0, 1, CURRENT, (), server().extras(CURRENT))
        return str(caught.value)

    good = np.ones((2, 4), np.float32)
    assert reason({}) == "centroids is missing: does the client procedure go with the strategy?"
    assert reason({"centroids": {}}) == "centroids: local is missing"
    assert "local is float32(2, 3), not float32(2, 4)" in reason({"centroids": {"local": good[:, :3]}})
    assert "local is float32(1, 4), not float32(2, 4)" in reason({"centroids": {"local": good[:1]}})
    assert "local holds values that are not finite" in reason({"centroids": {"local": good * np.nan}})


@pytest.mark.parametrize("name", ["num_centroids", "steps", "sinkhorn_iterations", "learning_rate", "temperature"])
def test_a_bad_setting_of_the_server_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got 0"):
        OrchestraServer(**{name: 0})


# Whole runs

RUN = [
    *TINY, "objective=orchestra", "client=orchestra", "strategy=orchestra", "objective.dim=8", "objective.bank_size=6",
    "objective.num_centroids=4", "client.local_clusters=2", "strategy.steps=20", "data.num_frames=4",
    "evaluation.clip_frames=4", "rounds=3", "evaluate_every=3",
]  # fmt: skip


def test_the_servers_settings_are_those_of_the_objective_and_the_client(tmp_path: Path) -> None:
    assert main([*RUN, "engine=local", f"run_dir={tmp_path}", "rounds=1"]) == 0
    strategy = (tmp_path / "config.yaml").read_text().split("\nstrategy:")[1].split("\nevaluation:")[0]
    assert {"num_centroids: 4", "dim: 8", "local_clusters: 2"} <= {line.strip() for line in strategy.splitlines()}


def test_runs_on_two_workers_and_runs_cut_in_two_have_the_bits_of_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*RUN, "engine=local", f"run_dir={tmp_path / 'whole'}"]) == 0
    whole = result(tmp_path / "whole")
    assert (whole["status"], whole["failures"]) == ("completed", 0)
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert main([*RUN, "engine=local", f"run_dir={tmp_path / 'cut'}"]) == 3
    assert main([*RUN, "engine=local", f"run_dir={tmp_path / 'cut'}", "resume=auto"]) == 0
    assert main([*RUN, "engine=ray", "engine.num_workers=2", f"run_dir={tmp_path / 'ray'}"]) == 0
    same = ("model_sha256", "scores", "bytes_up", "bytes_down")
    for other in ("cut", "ray"):
        assert [result(tmp_path / other)[key] for key in same] == [whole[key] for key in same]


def test_another_servers_rule_fails_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in RUN if not word.startswith("strategy")]
    assert main([*words, "strategy=fedavg", "engine=local", f"run_dir={tmp_path}"]) == 3
    assert "the server sends no centroids; choose strategy=orchestra" in capsys.readouterr().err.splitlines()[-1]
