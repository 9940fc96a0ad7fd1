"""The audit of a finished run: what its encoder, its rounds and a step of it betray."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedssl.checks import at_least
from fedssl.config import RunConfig, differing_keys
from fedssl.errors import ConfigError
from fedssl.evaluation.transfer import finished_configuration
from fedssl.privacy.audit.directions import audit_planted
from fedssl.privacy.audit.members import Attacker, thrown
from fedssl.privacy.audit.participants import participants
from fedssl.privacy.audit.recovery import recover
from fedssl.privacy.audit.run_audit import RunAudit
from fedssl.privacy.audit.shadows import check_shadow
from fedssl.privacy.audit.views import Views
from fedssl.report.rundir import RESULT, RunDirectory
from fedssl.workspace import open_workspace

__all__ = ["RunAudit", "audit_run"]


def audit_run(
    run_dir: Path,
    twin: Path | None = None,
    *,
    shadows: Sequence[Path] = (),
    clients: bool = False,
    invert: int = 0,
    num_views: int = 10,
    max_examples: int | None = 2000,
    seed: int = 0,
) -> RunAudit:
    """Attack a finished run.

    Args:
        run_dir: Directory of a run, with canaries unless clients or images alone are asked for.
        twin: Directory of the same run with `canaries.flipped` turned over, for SSLMem; None leaves that out.
        shadows: Directories of the same run with other `canaries.coins`, which teach more attacks.
        clients: Whether to guess who took part in which round.
        invert: Images to search for by the gradient of a step; 0 searches for none.
        num_views: Views of each example, the same for all encoders.
        max_examples: Most canaries, and most examples of each other group; None takes all.
        seed: Root of what the audit draws.

    Raises:
        ConfigError: It is not the directory of a finished run with what is asked for, the twin is not its twin, or a
            shadow not a shadow of it.
        DataError: The data cannot be used.
        ValueError: An argument is out of range.
    """
    at_least(2, num_views=num_views, max_examples=max_examples)
    at_least(0, invert=invert)
    config = finished_configuration(run_dir, [])
    if twin is not None:
        _check_twin(config, run_dir, twin)
    others = {path: finished_configuration(path, []) for path in shadows}
    for path, other in others.items():
        check_shadow(config, other, run_dir, path)
    result = RunDirectory(run_dir).read_result()
    if result is None:
        raise ConfigError(f"{run_dir}: is not the directory of a finished run, it has no {RESULT}")
    workspace = open_workspace(config)
    if (clients or invert) and workspace.parts is None:
        raise ConfigError("partition=on_device: the examples of its clients are not here; attack a simulated run")
    audit = RunAudit()
    if workspace.canaries is not None or twin is not None or shadows or not (clients or invert or workspace.planting):
        thrown(workspace)  # says that there are none, before a view is made
        attacker = Attacker(workspace, Views(workspace, num_views, seed), max_examples, seed)
        audit = attacker.audit(run_dir, twin, others, result.privacy)
    if workspace.planting is not None:
        audit = replace(audit, planted=audit_planted(workspace.planting, run_dir, result.privacy, seed))
    if clients:
        audit = replace(audit, participants=participants(workspace, run_dir, seed))
    if invert:
        audit = replace(audit, recovery=recover(workspace, invert, seed))
    return audit


def _check_twin(config: RunConfig, run_dir: Path, twin: Path) -> None:
    """Raise ConfigError unless the coins of the twin are those of the run, turned."""
    different = differing_keys(config.text, finished_configuration(twin, []).text)
    if [line.partition(":")[0] for line in different] != ["canaries.flipped"]:
        what = "; ".join(different) or "nothing"
        raise ConfigError(f"twin={twin}: must differ from {run_dir} in canaries.flipped alone, got {what}")
