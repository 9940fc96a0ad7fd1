"""The ClientApp: the same handlers in simulation and on devices."""

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients import handlers
from fedssl.config import RunConfig, load


def client_app(config_of: Callable[[Context], RunConfig]) -> ClientApp:
    """Return a ClientApp whose configuration comes from `config_of`."""
    application = ClientApp()

    @application.train()
    def train(message: Message, context: Context) -> Message:
        return handlers.train(message, context, config_of(context))

    @application.query()
    def query(message: Message, context: Context) -> Message:
        return handlers.query(message, context, config_of(context))

    return application


app = client_app(lambda context: load(str(context.run_config["overrides"])))
