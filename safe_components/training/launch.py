"""Start a recipe so that a user's mistake is one clear line, not a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import gymnasium
from torchrl.checkpoint import CheckpointError

from safe_components.training.config import C, parse_config

__all__ = ["explained_errors", "launch"]

# What the components raise for bad input, missing packages and numbers that are not finite.
_EXPLAINED = (ValueError, OSError, ImportError, FloatingPointError, CheckpointError, gymnasium.error.Error)


@contextmanager
def explained_errors(traceback: bool) -> Iterator[None]:
    """End the program with one line where an error explains itself; quieten TorchRL's notices.

    Args:
        traceback: show where such an error came from instead.

    Raises:
        SystemExit: with status 1 and that line.

    Example:
        >>> with explained_errors(traceback=False):
        ...     raise ValueError("seeds is 0, must be at least 1")
        Traceback (most recent call last):
        SystemExit: error: seeds is 0, must be at least 1
    """
    logging.getLogger("torchrl").setLevel(logging.WARNING)  # its notices would break the progress bar
    try:
        yield
    except _EXPLAINED as error:
        if traceback:
            raise
        raise SystemExit(f"error: {error}") from None


def launch(main: Callable[[C], None], config_type: type[C], arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and call ``main``; errors with an explanation end the program.

    ``--traceback`` shows where such an error came from.

    Raises:
        SystemExit: with status 1 and one line for bad input, a missing package, or a run that met
            a number that is not finite.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    config = parse_config(config_type, arguments)
    with explained_errors(config.traceback):
        main(config)
