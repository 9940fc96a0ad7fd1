"""The errors a user can mend, each of them one line."""


class ConfigError(ValueError):
    """A setting is wrong: the text names the key, the value and what is allowed."""


class DataError(ValueError):
    """A file or a folder of the data cannot be used: the text names it and says why."""


class RunError(RuntimeError):
    """A run cannot go on: the text names the round, the partition and the reason."""
