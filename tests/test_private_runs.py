"""Whole runs that are protected: what they promise, refuse, write down and stop at; one that goes on is the same."""

import json
import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from test_client_privacy import mean_of, merged
from test_resume import interrupt_after
from test_runs import result

import strategies.base
from clients import handlers
from clients.local_training import Outcome
from fedssl.config import RunConfig
from fedssl.privacy.account import KEY, LEDGER, SUMS
from fedssl.privacy.accounting import gaussian_epsilon
from fedssl.wire import LocalUpdate
from simulate import main

TINY = (
    "experiment=quickstart_images", "engine=local", "partition=iid", "partition.num_clients=4",
    "data.test_fraction=0.95", "height=8", "width=8", "model.width=4", "model.norm=group", "model.stem_stride=2",
    "rounds=2", "client.epochs=1", "evaluation=none", "objective=rotnet",
)  # fmt: skip
NOISE = "privacy.noise_multiplier=1"
EXAMPLE = ("privacy=example", NOISE, "privacy.sampling_rate=0.5", "privacy.accountant=rdp")
CELL = ("privacy=cell", NOISE, "privacy.sampling_rate=0.5", "objective=simclr", "privacy.accountant=rdp")
CLIENT = ("privacy=client", NOISE, "strategy.weights=equal")
LOCAL = ("privacy=local", NOISE)
MECHANISMS = {"example": EXAMPLE, "cell": CELL, "client": CLIENT, "local": LOCAL}


def ran(path: Path, *words: str) -> dict[str, Any]:
    """Run to the end and return the result."""
    assert main([*TINY, *words, f"run_dir={path}"]) == 0
    return result(path)


def rounds(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]


def charges(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / LEDGER).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Undisturbed runs of three rounds, each made once."""
    made: dict[str, Path] = {}

    def path(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole") / name
            ran(made[name], *MECHANISMS[name], "rounds=3")
        return made[name]

    return path


@pytest.mark.parametrize(
    ("words", "code", "texts"),
    [
        (
            (*EXAMPLE, "objective=simclr"),
            "PRIV-E-COUPLED",
            ["SimClr's coupling is batch", "privacy=client; privacy=cell"],
        ),
        ((*EXAMPLE, "objective=moco"), "PRIV-E-COUPLED", ["MoCo's coupling is queue", "use privacy=client; or a loss"]),
        (
            (*EXAMPLE, "partition=k400_paper_8c", "partition.num_clients=4", "partition.width=2"),
            "PRIV-OVERLAP",
            ["must give no example to several clients", "use privacy=client, or another partition"],
        ),
        (
            (*EXAMPLE, "objective=diet"),
            "PRIV-E-COUPLED",
            ["privacy.adjacency=add_remove: Diet numbers examples", "use zero_out or replace_one"],
        ),
        (
            (*CELL, "objective=essl", "objective@objective.host=diet"),
            "PRIV-E-COUPLED",
            ["privacy.adjacency=add_remove: Essl numbers examples"],
        ),
        (
            (*EXAMPLE, "objective=essl", "objective@objective.host=rscfed", "augmentation=semi"),
            "PRIV-E-COUPLED",
            ["Essl's coupling is batch: its batches are mixed by who is labelled"],
        ),
        ((*EXAMPLE, "objective=fixmatch", "augmentation=semi"), "PRIV-E-COUPLED", ["coupling is batch", "rotnet, mae"]),
        ((*EXAMPLE, "augmentation.style=1"), "PRIV-E-COUPLED", ["augmentation.style: must be null"]),
        (
            (*CELL, "objective=moco"),
            "PRIV-E-COUPLED",
            ["MoCo keeps values of earlier cells (queue)", "use privacy=client"],
        ),
        ((*CELL, "objective=nnclr"), "PRIV-E-COUPLED", ["Nnclr keeps values of earlier cells (queue)"]),
        ((*CELL, "privacy.cell_size=1"), "PRIV-E-COUPLED", ["privacy.cell_size=1: must be at least 2"]),
        ((*EXAMPLE, "model.norm=batch"), "PRIV-BN", ["backbone.", "set model.norm=group"]),
        ((*EXAMPLE, "objective=byol"), "PRIV-BN", ["projector.1 ", "objective.norm=group"]),
        ((*CELL, "model.norm=batch"), "PRIV-BN", ["batch_norm=share: ", "set model.norm=group, or batch_norm=frozen"]),
        (
            (*CLIENT, "model.norm=batch"),
            "PRIV-BN",
            ["batch_norm=share: ", "set model.norm=group, or batch_norm=frozen"],
        ),
        ((*LOCAL, "model.norm=batch"), "PRIV-BN", ["batch_norm=share: "]),
        (
            (*EXAMPLE, "client=moon"),
            "PRIV-STATE",
            ["client=Moon: ", "use local_training or fedprox, or privacy=client"],
        ),
        (
            ("privacy=client", NOISE, "strategy=scaffold", "client=scaffold"),
            "PRIV-STATE",
            ["strategy=Scaffold: ", "fedavg"],
        ),
        ((*EXAMPLE, "client.precision=bf16"), "PRIV-PRECISION", ["client.precision=bf16: ", "float32"]),
        ((*LOCAL, "strategy=scaffold", "client=scaffold"), "PRIV-STATE", ["strategy=Scaffold: ", "fedavg"]),
        (
            (*LOCAL, "strategy=fedirm", "client=fedirm", "objective=fedirm", "augmentation=semi"),
            "PRIV-STATE",
            ["strategy=ClassMeans: ", "fedavg"],
        ),
        ((*EXAMPLE, "strategy=fedvssl"), "PRIV-METRIC", ["strategy=FedVSSL: needs loss", "use strategy=fedavg"]),
        ((*LOCAL, "strategy=fedvssl"), "PRIV-METRIC", ["strategy=FedVSSL: needs loss", "use strategy=fedavg"]),
        (("privacy=client", NOISE, "strategy=fedvssl"), "PRIV-METRIC", ["strategy=FedVSSL: needs loss"]),
        ((*EXAMPLE, "client_evaluation=personal"), "PRIV-METRIC", ["client_evaluation=none, or privacy.metrics=unp"]),
        ((*CLIENT, "client_evaluation=personal"), "PRIV-METRIC", ["client_evaluation=none, or privacy.metrics=unp"]),
        (
            (*EXAMPLE, "strategy=fedvssl", "privacy.metrics=unprotected"),
            "PRIV-METRIC",
            ["strategy=FedVSSL: needs loss"],
        ),
        (
            (*LOCAL, "evaluation=images", "early_stop.score=kNN"),
            "PRIV-METRIC",
            ["early_stop.score: a score of the clients' data would choose a round", "privacy.metrics=unprotected"],
        ),
        ((*CLIENT, "evaluation=images", "checkpoint.best=kNN"), "PRIV-METRIC", ["checkpoint.best: a score"]),
        (
            ("privacy=client", NOISE, "strategy=median"),
            "PRIV-AGG",
            ["strategy=Median: is no mean", "fedavgm or fedadam"],
        ),
        (("privacy=client", NOISE, "strategy=krum"), "PRIV-AGG", ["strategy=Krum: is no mean", "fedavgm or fedadam"]),
        (("privacy=client", NOISE), "PRIV-WEIGHTS", ["strategy.weights=equal, or a privacy.weight_cap"]),
        ((*CLIENT, "cohort=2", "availability=dropout"), "PRIV-SAMPLER", ["set privacy.amplification=none"]),
        ((*CLIENT, "privacy.delta=0.25"), "PRIV-DELTA", ["privacy.delta=0.25: must be below 0.25"]),
        ((*EXAMPLE, "privacy.delta=0.02"), "PRIV-DELTA", ["privacy.delta=0.02: must be below 0.0111"]),
        (
            (*CLIENT, "privacy.group_size=2", "privacy.adjacency=replace_one"),
            None,
            ["privacy.group_size=2: must be 1 where one unit replaces another"],
        ),
        (("privacy=example",), None, ["privacy.noise_multiplier or target_epsilon: give exactly one of them"]),
        ((*CLIENT, "privacy.target_epsilon=3"), None, ["give exactly one of them, got 1 and 3"]),
        (
            (
                *CLIENT,
                "partition=k400_paper_8c",
                "partition.num_clients=4",
                "partition.width=2",
                "canaries.fraction=0.3",
            ),
            None,
            ["canaries.fraction=0.3: must be 0 with privacy where several clients may hold an example"],
        ),
        ((*CLIENT, "objective=diet", "canaries.fraction=0.3"), None, ["or the objective numbers them"]),
        ((*CLIENT, "quorum=2"), None, ["quorum=2: must be null with privacy=client"]),
        ((*CLIENT, "privacy.quantile=0.5"), None, ["privacy.noise_multiplier=1: must be below 0.4 with a quantile"]),
    ],
)
def test_what_would_break_a_guarantee_is_refused_in_one_line_before_anything_is_written(
    words: tuple[str, ...], code: str | None, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, *words, f"run_dir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(text in line for text in texts), line
    assert code is None or line.endswith(f"[{code}]")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_run_states_what_it_promises_and_what_each_round_has_spent(name: str, whole: Callable[[str], Path]) -> None:
    statement = result(whole(name))["privacy"][0]
    spent = [one["epsilon"] for one in rounds(whole(name))]
    assert 0 < spent[0] < spent[1] < spent[2] == statement["epsilon"]
    units = {"example": "example", "cell": "cell", "client": "client", "local": "client"}
    assert (statement["unit"], statement["mechanism"]) == (units[name], name)
    assert statement["adjacency"] == ("replace_one" if name == "local" else "add_remove")
    assert (statement["noise_multiplier"], statement["clip"]) == (1, 1)
    steps = name in ("example", "cell")
    assert (statement["sampling_rate"], statement["num_releases"]) == ((0.5, 6) if steps else (1, 3))
    assert statement["accountant"] == ("rdp" if steps else "pld")
    assert statement["delta"] == pytest.approx(1 / (10 * (90 if steps else 4)))
    assert any("the guarantee is void against anyone who knows the seed" in text for text in statement["assumptions"])
    assert statement["statement"].startswith(f"guarantee: epsilon {math.ceil(1000 * spent[2]) / 1000:.3f} at delta ")


@pytest.mark.parametrize("name", ["example", "client"])
def test_protected_runs_write_no_number_of_the_training_and_unprotected_ones_say_that_they_do(
    name: str, tmp_path: Path
) -> None:
    silent = ran(tmp_path / "silent", "rounds=1", *MECHANISMS[name])
    shown = ran(tmp_path / "shown", "rounds=1", *MECHANISMS[name], "privacy.metrics=unprotected")
    assert rounds(tmp_path / "silent")[0]["metrics"] == {}
    assert "loss" in rounds(tmp_path / "shown")[0]["metrics"]
    said = [
        any("metrics are outside the guarantee" in text for text in one["privacy"][0]["assumptions"])
        for one in (silent, shown)
    ]
    assert said == [False, True]
    assert silent["model_sha256"] == shown["model_sha256"]


@pytest.mark.parametrize("name", ["cell", "client"])
def test_without_noise_there_is_no_guarantee(name: str, tmp_path: Path) -> None:
    ended = ran(tmp_path / "run", "rounds=1", *MECHANISMS[name], "privacy.noise_multiplier=0")
    (statement,) = ended["privacy"]
    assert statement["epsilon"] is None
    assert statement["statement"].startswith("guarantee: none; ")
    assert statement["unit"] == "none"
    assert rounds(tmp_path / "run")[0]["epsilon"] is None


@pytest.mark.parametrize("name", ["example", "client"])
def test_the_budget_ends_a_run_before_the_round_that_would_exceed_it(
    name: str, tmp_path: Path, whole: Callable[[str], Path]
) -> None:
    spent = [one["epsilon"] for one in rounds(whole(name))]
    limit = (spent[1] + spent[2]) / 2
    ended = ran(tmp_path, *MECHANISMS[name], "rounds=3", f"privacy.max_epsilon={limit}")
    assert (ended["status"], ended["rounds_completed"]) == ("completed", 2)
    assert ended["stopped_early"].startswith("round 3 would come to epsilon ")
    assert ended["stopped_early"].endswith("[PRIV-BUDGET]")
    assert {charge["round"] for charge in charges(tmp_path)} == {1, 2}
    assert ended["privacy"][0]["epsilon"] == spent[1] <= limit


@pytest.mark.parametrize("name", ["example", "client"])
def test_ray_and_the_local_engine_release_the_same_bits(
    name: str, tmp_path: Path, whole: Callable[[str], Path]
) -> None:
    local = result(whole(name))
    ray = ran(tmp_path, *MECHANISMS[name], "rounds=3", "engine=ray", "engine.num_workers=2")
    assert ray["model_sha256"] == local["model_sha256"]
    assert ray["privacy"] == local["privacy"]
    assert (tmp_path / LEDGER).read_bytes() == (whole(name) / LEDGER).read_bytes()


def interrupted(path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """End a run of three rounds after round 2 is charged and written, and before its bundle is."""
    arguments = [*TINY, *words, "rounds=3", "checkpoint.every=1", f"run_dir={path}"]
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert main(arguments) == 3
    assert {charge["round"] for charge in charges(path)} == {1, 2}
    return [*arguments, "resume=auto"]


@pytest.mark.parametrize("name", ["example", "client", "local"])
def test_a_run_goes_on_to_the_same_bits_and_pays_for_no_release_twice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    assert main(interrupted(tmp_path, monkeypatch, *MECHANISMS[name])) == 0
    ended, undisturbed = result(tmp_path), result(whole(name))
    assert ended["model_sha256"] == undisturbed["model_sha256"]
    assert ended["privacy"] == undisturbed["privacy"]
    assert (tmp_path / LEDGER).read_bytes() == (whole(name) / LEDGER).read_bytes()


def test_a_clip_that_moves_is_where_it_was_when_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*CLIENT, "privacy.quantile=0.5", "privacy.noise_multiplier=0.3"]
    whole = ran(tmp_path / "whole", *words, "rounds=3")
    assert main(interrupted(tmp_path / "cut", monkeypatch, *words)) == 0
    assert result(tmp_path / "cut")["model_sha256"] == whole["model_sha256"]


def test_a_ledger_that_was_changed_or_is_missing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = interrupted(tmp_path / "run", monkeypatch, *CLIENT)
    path = tmp_path / "run" / LEDGER
    written = path.read_text()
    for changed in (written.replace('"noise_std": 1.0', '"noise_std": 9.0', 1), written.splitlines()[1] + "\n", None):
        path.unlink(missing_ok=True)
        if changed is not None:
            path.write_text(changed)
        capsys.readouterr()
        assert main(arguments) == 2
        assert capsys.readouterr().err.strip().endswith("[PRIV-RESUME]")
    path.write_text(written)
    assert main(arguments) == 0


@pytest.mark.parametrize("name", ["example", "client"])
def test_a_secure_key_is_nobodys_and_goes_on_with_the_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*MECHANISMS[name], "privacy.noise=secure"]
    first = ran(tmp_path / "first", *words, "rounds=3")
    assert main(interrupted(tmp_path / "second", monkeypatch, *words)) == 0
    second = result(tmp_path / "second")
    assert first["model_sha256"] != second["model_sha256"]
    assert "void" not in first["privacy"][0]["statement"]
    key = tmp_path / "second" / KEY
    assert key.exists() == (name == "client")  # clients keep their own
    if name == "client":
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert second["privacy"] == first["privacy"]  # the same release, made again with the key
        assert key.read_bytes() != (tmp_path / "first" / KEY).read_bytes()
    else:  # nobody can tell that what was made again is the release that was paid for: it is paid for once more
        assert [one["privacy"][0]["num_releases"] for one in (first, second)] == [6, 8]


def test_a_client_that_fails_gives_the_bits_of_one_that_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither ends the run, and neither moves the denominator."""
    train = handlers._work

    def failing(*args: object) -> Outcome:
        if args[3] == 2:
            raise RuntimeError("no answer")
        return train(*args)

    def unchanged(*args: object) -> Outcome:
        outcome = train(*args)
        workspace, task = args[:2]
        if args[3] == 2:
            handlers.bundle.load(workspace.model, {**workspace.initial, **task.arrays})
        return outcome

    ends = []
    for name, work in (("failing", failing), ("unchanged", unchanged)):
        monkeypatch.setattr(handlers, "_work", work)
        ends.append(ran(tmp_path / name, *CLIENT))
    assert ends[0]["model_sha256"] == ends[1]["model_sha256"]
    assert [end["failures"] for end in ends] == [2, 0]
    assert ends[0]["privacy"] == ends[1]["privacy"]


def test_a_round_that_coins_leave_empty_is_noised_and_charged(tmp_path: Path) -> None:
    """At a rate of 0.05 most rounds of four clients are empty."""
    ended = ran(tmp_path / "run", *CLIENT, "privacy.sampling_rate=0.05", "rounds=6", "privacy.accountant=rdp")
    empty = [one for one in rounds(tmp_path / "run") if not one["clients"]]
    assert empty
    assert [charge["round"] for charge in charges(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert ended["privacy"][0]["num_releases"] == 6
    spent = [one["epsilon"] for one in rounds(tmp_path / "run")]
    assert spent == sorted(spent)


def test_an_empty_round_moves_the_model_by_noise_alone(tmp_path: Path) -> None:
    words = [*CLIENT, "privacy.sampling_rate=1e-9", "rounds=1", "privacy.accountant=rdp"]
    hashes = {ran(tmp_path / f"{clip}", *words, f"privacy.clip={clip}")["model_sha256"] for clip in (1e-30, 1, 2)}
    assert len(hashes) == 3
    assert all(not rounds(tmp_path / f"{clip}")[0]["clients"] for clip in (1, 2))


def test_clients_count_by_their_examples_up_to_a_cap(tmp_path: Path) -> None:
    ended = ran(tmp_path / "run", "privacy=client", NOISE, "privacy.weight_cap=10", "rounds=1")
    assert any("up to the cap, are public" in text for text in ended["privacy"][0]["assumptions"])


@pytest.mark.parametrize("name", ["example", "cell", "local"])
def test_what_a_client_sends_is_arrays_and_public_counts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[LocalUpdate] = []
    read = strategies.base.read_sound

    def noted(*args: object) -> LocalUpdate:
        seen.append(read(*args))
        return seen[-1]

    monkeypatch.setattr(strategies.base, "read_sound", noted)
    ran(tmp_path / "run", *MECHANISMS[name], "rounds=1")
    assert len(seen) == 4
    assert all(not update.metrics and not update.extras for update in seen)
    assert sorted(update.num_examples for update in seen) == [22, 22, 23, 23]


def test_a_target_is_what_the_run_comes_to(tmp_path: Path) -> None:
    words = ["privacy=example", "privacy.target_epsilon=3", "privacy.sampling_rate=0.5", "privacy.accountant=rdp"]
    (statement,) = ran(tmp_path / "run", *words)["privacy"]
    assert 0.99 * 3 <= statement["epsilon"] <= 3


def test_cohorts_of_a_round_are_no_secret_so_clients_pay_for_what_they_were_in(tmp_path: Path) -> None:
    ended = ran(tmp_path / "run", *EXAMPLE, "cohort=2", "rounds=3")
    attended = [client for one in rounds(tmp_path / "run") for client in one["clients"]]
    paid = [int(charge["scope"].split()[1]) for charge in charges(tmp_path / "run")]
    assert paid == attended
    most = max(attended.count(client) for client in range(4))
    assert ended["privacy"][0]["num_releases"] == 2 * most


def test_no_picture_shows_training_videos_beside_a_promise(tmp_path: Path) -> None:
    words = (
        "engine=local", "data.num_train=16", "data.num_test=4", "data.num_classes=2", "partition.num_clients=2",
        "cohort=null", "model=video_vit_tiny", "client.epochs=1", "rounds=1", "evaluation.ks=[1]", "strategy=fedavg",
        "data.size=16", "height=16", "width=16",
    )  # fmt: skip
    for name, privacy in (("private", CLIENT), ("plain", ())):
        assert main([*words, *privacy, f"run_dir={tmp_path / name}"]) == 0
    assert not (tmp_path / "private" / "neighbours.png").exists()
    assert (tmp_path / "plain" / "neighbours.png").exists()


def test_where_clients_share_examples_nothing_is_said_of_one_example(tmp_path: Path) -> None:
    shared = ("partition=k400_paper_8c", "partition.num_clients=4", "partition.width=2")
    statements = ran(tmp_path, *CLIENT, *shared, "rounds=1")["privacy"]
    assert [each["unit"] for each in statements] == ["client"]


def test_an_example_is_promised_a_delta_below_one_over_the_examples(
    tmp_path: Path, whole: Callable[[str], Path]
) -> None:
    of_client, of_example = result(whole("client"))["privacy"]
    assert of_client["delta"] == pytest.approx(1 / (10 * 4))
    assert of_example["delta"] == pytest.approx(1 / (10 * 90), rel=0.05)
    assert of_example["epsilon"] > of_client["epsilon"]


def test_what_a_guarantee_leaves_out_is_said(tmp_path: Path) -> None:
    scored = ("evaluation=images", "evaluation.scores=[kNN]")
    first = ran(tmp_path / "first", *EXAMPLE, *scored, "rounds=1")
    text = first["privacy"][0]["statement"]
    assert "scores of the encoder are computed on the clients' examples and are outside it" in text
    assert "began with" not in text
    chosen = (
        "privacy.metrics=unprotected",
        "checkpoint.best=kNN",
        f"init={tmp_path / 'first' / 'encoder.safetensors'}",
    )
    text = ran(tmp_path / "second", *EXAMPLE, *scored, *chosen, "rounds=1")["privacy"][0]["statement"]
    assert "the encoder that training began with was made without these examples" in text
    assert "rounds are chosen by such a score (checkpoint.best)" in text


@pytest.mark.parametrize("noise", ["reproducible", "secure"])
def test_a_round_that_is_made_again_of_other_updates_has_other_noise_and_is_paid_for_again(
    noise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*CLIENT, f"privacy.noise={noise}"]
    arguments = interrupted(tmp_path, monkeypatch, *words)
    train, once = handlers.train, len(charges(tmp_path))

    def failing(message: Message, context: Context, config: RunConfig) -> Message:
        if context.node_config["partition-id"] == 2:
            raise RuntimeError("went away")
        return train(message, context, config)

    with monkeypatch.context() as patch:
        patch.setattr(handlers, "train", failing)
        assert main(arguments) == 0
    paid = charges(tmp_path)
    assert [charge["round"] for charge in paid] == [1, 2, 2, 3]
    assert len({charge["key"] for charge in paid if charge["round"] == 2}) == 2
    assert once == 2
    sums = [json.loads(line) for line in (tmp_path / SUMS).read_text().splitlines()]
    assert [each["round"] for each in sums] == [1, 2, 2, 3]


def test_several_rounds_are_made_again_without_a_client_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle is that of no round: all are lost."""
    words = [*CLIENT, "rounds=3", "checkpoint.every=3", "cohort=3"]
    arguments = [*TINY, *words, f"run_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert main(arguments) == 3
    train, before = handlers.train, charges(tmp_path)

    def failing(message: Message, context: Context, config: RunConfig) -> Message:
        if context.node_config["partition-id"] in (0, 1):
            raise RuntimeError("went away")
        return train(message, context, config)

    with monkeypatch.context() as patch:
        patch.setattr(handlers, "train", failing)
        assert main([*arguments, "resume=auto"]) == 0
    paid = charges(tmp_path)
    assert [charge["round"] for charge in before] == [1, 2]
    rates = [(charge["round"], charge["release"]["sampling_rate"]) for charge in paid]
    assert rates == [(1, 0.75), (2, 0.75), (1, 1.0), (2, 1.0), (3, 0.75)]  # the coins of a round are drawn once


def test_other_sums_of_a_round_have_other_noise_and_other_noise_on_the_count(tmp_path: Path) -> None:
    made = []
    for again in (0, 1):
        mean = mean_of(noise_multiplier=0.05, quantile=0.5)
        mean.attempt = lambda number, digest, again=again: again  # type: ignore[misc]
        made.append((merged(mean, [])["backbone.w"], mean.clip))
    assert (made[0][0] != made[1][0]).all()
    assert made[0][1] != made[1][1]


def test_digests_that_are_missing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = interrupted(tmp_path, monkeypatch, *CLIENT)
    (tmp_path / SUMS).unlink()
    capsys.readouterr()
    assert main(arguments) == 2
    assert capsys.readouterr().err.strip().endswith("put it back [PRIV-RESUME]")


def test_no_budget_is_left_for_a_round_that_is_made_again_of_other_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    limit = rounds(whole("client"))[1]["epsilon"] * 1.001
    arguments = interrupted(tmp_path, monkeypatch, *CLIENT, f"privacy.max_epsilon={limit}")
    path = tmp_path / SUMS
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace('"sum": "', '"sum": "0')]) + "\n")
    assert main(arguments) == 3
    assert "was released with other updates" in (tmp_path / "error.txt").read_text()
    assert len(charges(tmp_path)) == 2


def test_a_group_of_units_has_a_statement_of_its_own(tmp_path: Path, whole: Callable[[str], Path]) -> None:
    alone = result(whole("client"))["privacy"]
    made = ran(tmp_path, *CLIENT, "privacy.group_size=2", "rounds=3")["privacy"]
    assert made[0] == alone[0]
    assert (made[1]["unit"], made[1]["adjacency"]) == ("group of 2 clients", "add_remove")
    # three releases without sampling: twice the shift
    assert made[1]["epsilon"] == pytest.approx(gaussian_epsilon(2 * math.sqrt(3), made[1]["delta"]))
