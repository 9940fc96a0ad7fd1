"""The errors a user can mend, each of them one line."""


class ConfigError(ValueError):
    """A setting is wrong: the text names the key, the value and what is allowed."""


class DataError(ValueError):
    """A file or a folder of the data cannot be used: the text names it and says why."""


class RunError(RuntimeError):
    """A run cannot go on: the text names the round, the partition and the reason."""


class PrivacyError(ConfigError):
    """A guarantee that was asked for would not hold: the text ends with a code that names the rule.

    Args:
        text: The key, the value, why, and what to change.
        code: Of the rule, e.g. "PRIV-BN".
    """

    def __init__(self, text: str, code: str) -> None:
        super().__init__(f"{text} [{code}]")
        self.code = code
