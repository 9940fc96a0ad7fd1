"""Send the numbers of a run elsewhere; a tracker that fails never ends the run."""

import logging
import netrc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlparse

from fedssl.errors import ConfigError
from fedssl.report.records import RoundRecord, RunResult, plain

LOGGER = logging.getLogger("fedssl")
INIT_TIMEOUT_SECONDS = 30
FINISH_TIMEOUT_SECONDS = 60


class Tracker(Protocol):
    """Follows a run from the server."""

    def start(self, config: Mapping[str, object], position: Mapping[str, str]) -> None:
        """Begin with the resolved configuration; "run_dir" in it names the directory for local files.

        Args:
            config: What the run is.
            position: What `position` returned in the process that this one goes on from; empty at the start of a run.
        """
        ...

    def position(self) -> Mapping[str, str]:
        """Return what finds this run again."""
        ...

    def round(self, record: RoundRecord) -> None:
        """Take the numbers of one round."""
        ...

    def finish(self, result: RunResult) -> None:
        """Take the outcome and let go of every resource."""
        ...


class Wandb:
    """Weights & Biases, from the server only; the first call that fails logs a warning and ends the tracking.

    Attributes:
        project: Name of the project.
        mode: "online", or "offline" to keep the files in the run directory; without a key "online" becomes "offline".
    """

    def __init__(self, project: str, mode: Literal["online", "offline"] = "online") -> None:
        if mode not in ("online", "offline"):
            raise ConfigError(f"tracking.mode={mode!r}: allowed are online, offline")
        self.project = project
        self.mode = mode
        self._run: Any = None
        self._enabled = True

    def start(self, config: Mapping[str, object], position: Mapping[str, str]) -> None:
        """Open the run, or that at `position` again; its files go to `config["run_dir"]`, or the working directory."""
        self._guard(lambda: self._init(config, position))

    def position(self) -> Mapping[str, str]:
        """Return the id of the run, empty when the tracking ended."""
        return {} if self._run is None else {"id": str(self._run.id)}

    def round(self, record: RoundRecord) -> None:
        """Log the round's scores, metrics, epsilon, bytes and seconds at step `record.round`."""
        self._guard(lambda: self._run.log(_flat(record), step=record.round))

    def finish(self, result: RunResult) -> None:
        """Write the result to the run's summary and close it, waiting at most 60 s for the upload."""
        self._guard(lambda: self._close(result))

    def _init(self, config: Mapping[str, object], position: Mapping[str, str]) -> None:
        import wandb

        mode = self.mode
        if mode == "online" and not _has_key():
            LOGGER.warning("tracking: no wandb key found, recording offline; set WANDB_API_KEY to upload")
            mode = "offline"
        settings = wandb.Settings(
            init_timeout=INIT_TIMEOUT_SECONDS,
            finish_timeout=FINISH_TIMEOUT_SECONDS,
            silent=True,
            quiet=True,
            console="off",
        )
        folder = str(config.get("run_dir") or Path.cwd())
        plain_config = {name: plain(value) for name, value in config.items()}
        self._run = wandb.init(
            project=self.project,
            mode=mode,
            dir=folder,
            config=plain_config,
            settings=settings,
            id=position.get("id"),
            resume="allow" if position else None,
        )

    def _close(self, result: RunResult) -> None:
        self._run.summary.update(result.to_dict())
        self._run.finish()

    def _guard(self, call: Callable[[], None]) -> None:
        """Do `call` unless an earlier one failed; whatever goes wrong becomes one warning."""
        if not self._enabled:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 - a tracker's fault of any kind must not end the run
            self._enabled = False
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            LOGGER.warning("tracking: wandb stopped (%s), the run goes on without it", reason)


def _flat(record: RoundRecord) -> dict[str, object]:
    row: dict[str, object] = {f"score/{name}": value for name, value in record.scores.items()}
    row.update({f"train/{name}": value for name, value in record.metrics.items()})
    if record.epsilon is not None:
        row["epsilon"] = record.epsilon
    row.update({"bytes_up": record.bytes_up, "bytes_down": record.bytes_down, "seconds": record.seconds})
    row.update({"clients": len(record.clients), "failures": len(record.failures)})
    return row


def _has_key() -> bool:
    """Return whether the environment or the netrc file holds a key for the wandb server; the key is not kept."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        entry = netrc.netrc(str(path)).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return entry is not None and bool(entry[2])
