"""The exception for errors that the user must fix before work can start."""


class ConfigError(ValueError):
    """An option, input, output or model is wrong. The command line prints the message and exits with status 2."""
