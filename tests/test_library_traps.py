"""What Flower, Opacus and dp-accounting do that would break a guarantee, and that a run of ours does not."""

import math
from collections.abc import Callable, Iterable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant as Rdp
from federation import INITIAL, Heard
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
)
from flwr.supercore.privacy_accounting import NeighboringRelation, PrivacyConfig, SamplingMethod
from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant
from opacus import GradSampleModule
from opacus.data_loader import DPDataLoader
from opacus.validators import ModuleValidator
from test_client_privacy import mean_of, merged, moves, setting, update
from test_local_privacy import Dots, trained
from test_replies import CLIENTS, Mutating
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fedssl.errors import PrivacyError
from fedssl.objectives.rotnet import RotNet
from fedssl.objectives.simclr import SimClr
from fedssl.privacy.account import Account
from fedssl.privacy.accounting import Release, epsilon, gaussian_epsilon
from fedssl.privacy.client import Client
from fedssl.privacy.example import Example, refuse_coupled
from fedssl.privacy.local import Local
from fedssl.privacy.noise import NoiseKey
from fedssl.simulation.grid import failure, identify
from strategies.averaging import Averaging
from strategies.base import Plan


class Kept(FedAvg):
    """A rule of somebody's own, which keeps what it is to aggregate."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self.replies = list(replies)
        return None, None


def asked(*records: np.ndarray) -> Message:
    identify()
    return Message(RecordDict({f"part{k}": record(values) for k, values in enumerate(records)}), 1, MessageType.TRAIN)


def record(values: np.ndarray) -> ArrayRecord:
    return ArrayRecord({"w": Array(values)})


def reply(*updates: np.ndarray) -> Message:
    """Return an answer with a record for each update."""
    return Message(asked(*updates).content, reply_to=asked())


def fixed(num_clients: int) -> DifferentialPrivacyServerSideFixedClipping:
    rule = DifferentialPrivacyServerSideFixedClipping(Kept(), 0.0, 1.0, num_clients)
    rule.current_arrays = record(np.zeros(3))
    return rule


def federate(
    path: Path, spoil: Callable[[RecordDict], None] | None, strategy: Averaging | None = None, rounds: int = 3
) -> Heard:
    """Run rounds of four clients under client-level privacy; the second client's second reply is spoilt."""
    path.mkdir()
    heard = Heard()
    protection = Account(Client(noise_multiplier=1.0), setting(num_clients=CLIENTS, rounds=rounds), path, 0, None)
    plan = Plan(rounds, 0, CLIENTS, None, None, num_examples=lambda partition: partition + 1, account=protection)
    (strategy or Averaging()).start(Mutating(spoil), INITIAL, plan, heard, frozenset({"backbone.n"}))
    return heard


def test_flower_clips_every_record_by_itself_so_that_four_are_worth_two_clips() -> None:
    rule = fixed(1)
    rule.aggregate_train(1, [reply(*[np.array([30.0, 40.0, 0.0])] * 4)])
    (clipped,) = rule.strategy.replies
    whole = np.concatenate([part["w"].numpy() for part in clipped.content.array_records.values()])
    assert np.linalg.norm(whole) == pytest.approx(math.sqrt(4))


def test_tensors_of_ours_are_clipped_as_one() -> None:
    arrays = merged(mean_of(1), [update(0, {"backbone.w": np.array([30.0, 40.0]), "head.t": np.array(50.0)})])
    assert moves(arrays) == pytest.approx(1.0)


def test_more_records_than_the_model_s_move_nothing(tmp_path: Path) -> None:
    def boast(content: RecordDict) -> None:
        content["more"] = content["extra.more"] = record(np.full(6, 1e6))

    plain, more = (federate(tmp_path / spoil.__name__, spoil) for spoil in (lambda content: None, boast))
    assert more.sha256 == plain.sha256


def test_flower_throws_a_round_away_for_one_error_and_noises_too_few_clients_as_if_all_were_there() -> None:
    ones, rule = [reply(np.ones(3)) for _ in range(2)], fixed(3)
    assert rule.aggregate_train(1, [*ones, failure(asked(), "none")]) == (None, None)
    assert not hasattr(rule.strategy, "replies")
    rule.aggregate_train(1, ones)
    assert len(rule.strategy.replies) == 2  # whose mean has the noise of a mean of three


def test_an_error_a_reply_that_cannot_be_read_and_one_without_numbers_all_count_as_zero(tmp_path: Path) -> None:
    def unread(content: RecordDict) -> None:
        del content["metrics"]

    def infinite(content: RecordDict) -> None:
        content.array_records["arrays"]["backbone.w"] = Array(np.full((2, 3), np.inf, np.float32))

    def zero(content: RecordDict) -> None:
        content.array_records["arrays"]["backbone.w"] = Array(before["backbone.w"])

    spoils: dict[str, Callable[[RecordDict], None] | None] = {"none": None, "unread": unread, "infinite": infinite}
    heard = [federate(tmp_path / name, spoil) for name, spoil in spoils.items()]
    assert [len(one.records) for one in heard] == [3] * 3
    assert [len(one.failures) for one in heard] == [1] * 3
    assert len({one.sha256 for one in heard}) == 1
    before = federate(tmp_path / "before", None, rounds=1).arrays
    assert federate(tmp_path / "zero", zero).sha256 == heard[0].sha256


@pytest.mark.parametrize(("start", "after"), [(0.5, 0.5 * math.exp(-2)), (2.0, 2.0 * math.exp(2))])
def test_flower_s_clip_runs_away_from_the_norms_on_either_side_of_them(start: float, after: float) -> None:
    """Every update has norm 1; a tenth of a log unit a round, always the wrong way."""
    rule = DifferentialPrivacyServerSideAdaptiveClipping(Kept(), 0.0, 4, start, clipped_count_stddev=0.0)
    rule.current_arrays = record(np.zeros(3))
    for number in range(20):
        rule.aggregate_train(number, [reply(np.array([1.0, 0.0, 0.0])) for _ in range(4)])
    assert rule.clipping_norm == pytest.approx(after)


def test_flower_accounts_for_a_plain_mean_alone_and_we_for_any_server_optimizer(tmp_path: Path) -> None:
    config = PrivacyConfig(1e-5, 4, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION)
    with pytest.raises(ValueError, match="requires a strategy using FedAvg"):
        DifferentialPrivacyServerSideFixedClipping(FedAdam(), 1.0, 1.0, 4, accountant=RdpAccountant(config))
    assert "accountant" not in signature(DifferentialPrivacyServerSideAdaptiveClipping).parameters
    mean, stepped = (
        federate(tmp_path / name, None, Averaging(optimizer=optimizer))
        for name, optimizer in (("mean", None), ("adam", torch.optim.Adam))
    )
    assert mean.sha256 != stepped.sha256
    assert [one.epsilon for one in mean.records] == [one.epsilon for one in stepped.records]


def test_flower_s_local_noise_is_what_somebody_typed_and_ours_follows_the_clip() -> None:
    typed = LocalDpMod(clipping_norm=1.0, sensitivity=1e-4, epsilon=1.0, delta=1e-5)
    moved = np.zeros(20_000)
    moved[0] = 1e-3  # an update of zero would end in a division by its norm
    sent = typed(asked(np.zeros(20_000)), None, lambda *_: reply(moved)).content["part0"]["w"].numpy()
    assert sent.std() == pytest.approx(1e-4 * math.sqrt(2 * math.log(1.25e5)), rel=0.05)
    assert gaussian_epsilon(2.0 / float(sent.std()), 1e-5) > 1e6  # one was asked for
    for clip in (0.1, 1.0):
        terms = Local(target_epsilon=1.0, delta=1e-5, clip=clip).terms(setting(rounds=1))
        assert gaussian_epsilon(2 * clip / terms.release.noise_std, 1e-5) == pytest.approx(1.0, rel=1e-3)


def test_opacus_finds_nothing_wrong_with_a_network_whose_loss_couples_examples_and_we_ask_the_loss() -> None:
    assert ModuleValidator.validate(nn.Linear(4, 3)) == []  # that is all that it is shown
    with pytest.raises(PrivacyError, match=r"SimClr's coupling is batch"):
        refuse_coupled(setting(objective=SimClr()))
    refuse_coupled(setting(objective=RotNet()))


def test_opacus_passes_a_layer_that_writes_in_place_and_breaks_at_its_first_step() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True))
    assert ModuleValidator.validate(model) == []
    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        GradSampleModule(model)(torch.ones(2, 4))


class Looked(Dataset[dict[str, Any]]):
    """Named tensors and numbers, and which examples were looked at."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.seen.append(index)
        return {"view": torch.zeros(2), "place": index}


def test_opacus_looks_at_the_first_example_before_any_is_drawn_and_cannot_begin_with_an_empty_batch() -> None:
    dataset = Looked()
    loader = DPDataLoader.from_data_loader(DataLoader(dataset, batch_size=1))
    assert set(dataset.seen) == {0}
    with pytest.raises(TypeError, match=r"must be torch\.dtype"):
        loader.collate_fn([])


def test_we_look_at_nobody_who_was_not_drawn_and_begin_with_any_batch() -> None:
    rate, key = 0.1, NoiseKey.from_seed(0)
    drawn = [np.flatnonzero(key.generator("sample", 0, 1, step).random(3) < rate).tolist() for step in range(10)]
    assert drawn[0] == []
    dots = Dots(3)
    trained(Example(noise_multiplier=1.0, sampling_rate=rate), RotNet(), dots)
    assert dots.seen == [place for step in drawn for place in step]


def test_dp_accounting_drops_low_orders_where_many_are_sampled_and_ours_stays_a_bound() -> None:
    orders = [1.1, 1.5, 2.0, 3.0]
    event = PoissonSampledDpEvent(0.5, GaussianDpEvent(0.5))
    assert np.isinf(Rdp(orders).compose(event).rdp).tolist() == [True, True, False, False]
    made = [Release(0.5, 1.0, 0.5, 1)]
    tight, loose = (epsilon(made, 1e-5, accountant=name) for name in ("pld", "rdp"))
    assert tight <= loose < math.inf
