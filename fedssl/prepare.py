"""Everything a run needs, tried once before its first round."""

import logging

from fedssl.config import COMPONENTS, RunConfig, build, key_first
from fedssl.data.file_dataset import fill_cache
from fedssl.data.partition import Overlapping
from fedssl.errors import ConfigError, DataError, PrivacyError
from fedssl.evaluation.images import ImageEvaluation
from fedssl.evaluation.personal import client_score_names
from fedssl.models import bundle
from fedssl.objectives.objective import CLASSIFIER, UNKNOWN
from fedssl.seeding import torch_stream
from fedssl.training.precision import check_precision
from fedssl.workspace import Workspace, open_workspace

LOGGER = logging.getLogger("fedssl")
_FEW_UNITS = 1000


def prepare(config: RunConfig) -> Workspace:
    """Open the workspace of a server after everything in `config` was tried once, so that mistakes show at the start.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The data cannot be used.
    """
    workspace = open_workspace(config)
    workspace.device  # noqa: B018 - a GPU that is not there
    for name in COMPONENTS:
        if name != "data":
            build(config, name)
    smallest, batch = workspace.objective.min_batch, workspace.procedure.batch_size
    if batch < smallest:
        raise ConfigError(f"client.batch_size={batch}: must be at least {smallest}, the objective's smallest batch")
    try:
        num_clients = workspace.num_clients
    except DataError:
        raise
    except ValueError as error:
        raise ConfigError(key_first(str(error))) from error
    _check_scores(workspace)
    for name, most, whole in (
        ("cohort", num_clients, "clients"),
        ("quorum", config.cohort or num_clients, "clients of a round"),
    ):
        value = getattr(config, name)
        if value is not None and value > most:
            raise ConfigError(f"{name}={value}: must be at most the {most} {whole}")
    _check_labels(workspace, num_clients)
    _check_held_out(workspace, num_clients)
    _check_norms(workspace)
    _check_protection(workspace)
    _check_privacy(workspace)
    _check_precision(workspace)
    if workspace.parts is not None:
        fill_cache(workspace.splits)
    return workspace


def _check_held_out(workspace: Workspace, num_clients: int) -> None:
    """Raise ConfigError when clients evaluate and one of them has nothing to hold out, or nothing left to train on."""
    if workspace.parts is None or workspace.config.components["client_evaluation"]["_target_"] is None:
        return
    for client in range(num_clients):
        workspace.held_out(client)
        if not len(workspace.indices(client)):
            raise ConfigError(f"client_evaluation: client {client} knows no label, and the objective needs one")


def _check_labels(workspace: Workspace, num_clients: int) -> None:
    """Raise ConfigError when the labels that are known, or the classes, are too few for what is asked."""
    deficiency, config = workspace.deficiency, workspace.config
    if workspace.parts is None:
        if not deficiency.on_devices:
            raise ConfigError("labels: must be all, partial_client or partial_data with partition=on_device")
        return
    known = workspace.known
    num_known = int(known.labelled.sum())
    if not num_known and (workspace.objective.needs_labels or config.labelled_rounds):
        raise ConfigError("labels: no client knows a label, and the objective or labelled_rounds needs one")
    if workspace.objective.needs_labels or config.labelled_rounds:
        most = sum(bool((workspace.labels(client) != UNKNOWN).any()) for client in range(num_clients))
        if config.quorum is not None and config.quorum > most:
            raise ConfigError(f"quorum={config.quorum}: must be at most the {most} clients that know labels")
    if CLASSIFIER in workspace.model and not num_known + len(known.server):
        raise ConfigError("labels: nobody knows a label, and the objective has a classifier")


def _check_protection(workspace: Workspace) -> None:
    """Raise ConfigError when owners lack labels that their protection needs, or it would void a guarantee."""
    protector, mechanism = workspace.protector, workspace.mechanism
    if protector is None or not workspace.owners:
        return
    kind = type(protector).__name__
    if mechanism is not None and mechanism.unit != "client":
        what = f"changes an image by what others show, so that nothing holds for one {mechanism.unit}"
        raise PrivacyError(f"protection={kind}: {what}; use privacy=client or privacy=local", "PRIV-PROTECTION")
    if workspace.parts is None or not protector.needs_labels:
        return
    for client in workspace.owners:
        known, needed = workspace.num_labelled(client)
        if known < needed:
            what = f"needs a label of each image, client {client} knows {known} of {needed}"
            raise ConfigError(f"protection={kind}: {what}; use protection=random_sample, em_cluster or uc")


def _check_privacy(workspace: Workspace) -> None:
    """Raise ConfigError when a guarantee would not hold."""
    mechanism, config = workspace.mechanism, workspace.config
    directions = config.canaries.directions
    if directions and (mechanism is None or not mechanism.takes_planted):
        what = "must be 0 unless a sum of units is noised: privacy=example, logit, cell, or client without"
        raise ConfigError(f"canaries.directions={directions}: {what} secure_aggregation")
    if mechanism is None:
        return
    if isinstance(workspace.partitioner, Overlapping) and mechanism.unit != "client":
        what = f"must give no example to several clients with privacy={mechanism.name}"
        kind = type(workspace.partitioner).__name__
        raise PrivacyError(f"partition={kind}: {what}; use privacy=client, or another partition", "PRIV-OVERLAP")
    alone = not workspace.protected.overlapping and not workspace.objective.contract.numbered
    if config.canaries.fraction and not alone:
        what = "must be 0 with privacy where several clients may hold an example, or the objective numbers them"
        raise ConfigError(f"canaries.fraction={config.canaries.fraction}: {what}")
    mechanism.check(workspace.protected)
    if mechanism.at_server and config.quorum is not None:
        raise ConfigError(
            f"quorum={config.quorum}: must be null with privacy=client, a client that fails counts as zero"
        )
    delta, units = workspace.terms.delta, mechanism.num_units(workspace.protected)  # the noise that a target asks for
    if 0 < units < _FEW_UNITS:
        LOGGER.warning("privacy.delta=%.3g: with %s units it is no negligible chance that nothing holds", delta, units)
    if workspace.parts is not None:
        largest = max(range(workspace.num_clients), key=lambda client: len(workspace.indices(client)))
        workspace.model.train()
        with torch_stream(config.seed, "try"):
            mechanism.try_out(workspace.model, lambda size: workspace.some(largest, size), workspace.objective)


def _check_precision(workspace: Workspace) -> None:
    """Raise ConfigError when the device cannot compute what `client.precision` asks for."""
    try:
        check_precision(workspace.procedure.precision, workspace.device)
    except ValueError as error:
        raise ConfigError(key_first(f"client.{error}")) from error


def _check_norms(workspace: Workspace) -> None:
    """Raise ConfigError when `batch_norm` asks for what the model or the evaluation cannot do."""
    policy = workspace.config.batch_norm
    if policy != "share" and not bundle.norm_names(workspace.model):
        raise ConfigError(f"batch_norm={policy}: must be share, the model has no batch normalisation")
    if policy == "local" and build(workspace.config, "evaluation") is not None:
        raise ConfigError("batch_norm=local: needs evaluation=none, no client uses the server's; see client_evaluation")


def _check_scores(workspace: Workspace) -> None:
    """Raise ConfigError when a setting names a score that nobody reports."""
    config, names = workspace.config, []
    evaluation, personal = build(config, "evaluation"), build(config, "client_evaluation")
    if isinstance(evaluation, ImageEvaluation) and evaluation.classifies and CLASSIFIER not in workspace.model:
        raise ConfigError("evaluation.scores: accuracy and worst class need an objective with a classifier")
    if evaluation is not None:
        names += evaluation.score_names
        workspace.splits  # noqa: B018 - the server evaluates on them
    if personal is not None:
        names += [name for score in personal.score_names for name in client_score_names(score)]
    for key, score in (("checkpoint.best", config.checkpoint.best), ("early_stop.score", config.early_stop.score)):
        if score is not None and score not in names:
            raise ConfigError(f"{key}={score}: must be a score of the evaluation: {', '.join(names) or 'it has none'}")
