"""Start of a recipe, with one clear line instead of a traceback for a mistake of the user."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import gymnasium

from safe_components.envs import EnvironmentFailure
from safe_components.training.checkpoint import CheckpointError
from safe_components.training.command_line import C, parse_config

__all__ = ["explained_errors", "launch"]

# Errors of bad input, missing packages, failing environments and numbers that are not finite.
EXPLAINED = (
    ValueError,
    OSError,
    ImportError,
    FloatingPointError,
    EnvironmentFailure,
    CheckpointError,
    gymnasium.error.Error,
)


@contextmanager
def explained_errors(traceback: bool) -> Iterator[None]:
    """End the program with one line for errors that explain themselves, and silence TorchRL's notices.

    Args:
        traceback: whether to raise the original error instead.

    Raises:
        SystemExit: with status 1 and the message of the error.

    Example:
        >>> with explained_errors(traceback=False):
        ...     raise ValueError("seeds is 0, must be at least 1")
        Traceback (most recent call last):
        SystemExit: error: seeds is 0, must be at least 1
    """
    logging.getLogger("torchrl").setLevel(logging.WARNING)  # its notices would break the progress bar
    try:
        yield
    except KeyboardInterrupt:  # the run has said where it stopped
        if traceback:
            raise
        raise SystemExit(130) from None
    except EXPLAINED as error:
        if traceback:
            raise
        raise SystemExit(f"error: {error}") from None


def launch(main: Callable[[C], object], config_type: type[C], arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and call ``main``; end the program with one line for errors of the user.

    With ``--traceback`` the original error is raised instead.

    Args:
        main: function that takes the configuration and trains.
        config_type: configuration class of the recipe.
        arguments: words of the command line; None takes those of this process.

    Raises:
        SystemExit: with status 1 and one line for bad input, a missing package, or a number that is not
            finite.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    config = parse_config(config_type, arguments)
    with explained_errors(config.run.traceback):
        main(config)
