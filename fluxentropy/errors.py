"""Errors that a user can act on. The command line prints them as one message, without a traceback."""


class FluxentropyError(Exception):
    """Something failed while running. The message names the value, the place and the fix. Exit code 1."""

    exit_code = 1


class UsageError(FluxentropyError):
    """A flag, a configuration or a combination of them makes no sense. Exit code 2."""

    exit_code = 2


class SourceError(FluxentropyError):
    """A source, or one of its rows, cannot be read. The message names the file and, where known, the line."""


class ModelError(FluxentropyError):
    """A model or tokenizer cannot be found, loaded or used."""


class RunError(FluxentropyError):
    """A run directory belongs to another configuration, is held by another process, or is damaged."""
