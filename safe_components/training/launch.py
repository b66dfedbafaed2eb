"""Start a recipe so that a user's mistake is one clear line, not a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

import gymnasium
from torchrl.checkpoint import CheckpointError

from safe_components.training.config import C, parse_config

__all__ = ["launch"]

# What the components raise for bad input, missing packages and numbers that are not finite.
_EXPLAINED = (ValueError, OSError, ImportError, FloatingPointError, CheckpointError, gymnasium.error.Error)


def launch(main: Callable[[C], None], config_type: type[C], arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and call ``main``; errors with an explanation end the program.

    ``--traceback`` shows where such an error came from.

    Raises:
        SystemExit: with status 1 and one line for bad input, a missing package, or a run that met
            a number that is not finite.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    config = parse_config(config_type, arguments)
    logging.getLogger("torchrl").setLevel(logging.WARNING)  # its notices would break the progress bar
    try:
        main(config)
    except _EXPLAINED as error:
        if config.traceback:
            raise
        raise SystemExit(f"error: {error}") from None
