"""The one exception of the project: something the user must change before any work can start."""


class ConfigError(ValueError):
    """A wrong option, input, output or model. The command line prints it and exits with status 2."""
