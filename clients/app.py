"""The ClientApp: the same handlers in simulation and on devices."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import handlers
from fedssl.compose import load
from fedssl.config import RunConfig
from fedssl.errors import ConfigError

DATA_ROOT = "data-root"


def client_app(config_of: Callable[[Context], RunConfig]) -> ClientApp:
    """Return a ClientApp whose configuration comes from `config_of`."""
    application = ClientApp()

    @application.train()
    def train(message: Message, context: Context) -> Message:
        return handlers.train(message, context, config_of(context))

    @application.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return handlers.evaluate(message, context, config_of(context))

    @application.query()
    def query(message: Message, context: Context) -> Message:
        return handlers.query(message, context, config_of(context))

    return application


def device_config(context: Context) -> RunConfig:
    """Return the run's configuration with this device's own data folder, which a server cannot choose.

    Raises:
        ConfigError: A setting is wrong, or the data is a folder and the device does not say which.
    """
    # the backbone comes from the server, whose files a device does not have
    words = [*shlex.split(str(context.run_config["overrides"])), "init=null"]
    root = context.node_config.get(DATA_ROOT)
    if root is not None:
        words.append(f"data.root={json.dumps(str(root))}")
    config = load(words)
    if root is None and "root" in config.components["data"]:
        raise ConfigError(f"node-config {DATA_ROOT}: must be given, the folder of this device's examples")
    return replace(config, run_dir=None)  # where the server writes is not for a device to write


app = client_app(device_config)
