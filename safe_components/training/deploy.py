"""Saved policies that need no recipe: the file of a policy, and how to load and export it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor
from torchrl.envs import ObservationNorm

from safe_components import keys
from safe_components.ops import import_part
from safe_components.policies import DeployedPolicy, build_policy, policy_description
from safe_components.training.checkpoint import Checkpoints
from safe_components.training.config import CONFIG_FILE, OWN, read_yaml
from safe_components.training.options import usable_device
from safe_components.training.state_file import read_state, write_state

__all__ = [
    "POLICY_FILE",
    "PolicyFile",
    "export_policy",
    "find_policy",
    "import_own_policy",
    "load_policy",
    "save_policy",
]

POLICY_FILE = "deployed_policy.safetensors"
"""name of the file of a policy in a checkpoint"""
_FORMAT = "safe_components.policy/1"


def save_policy(
    path: Path, policy: TensorDictModuleBase, norm: ObservationNorm, about: Mapping[str, Any] | None = None
) -> None:
    """Write a policy and the scaling of its observations to one file, which :func:`load_policy` reads.

    The file holds tensors and JSON in the format ``safetensors``, so loading it cannot run code. A checksum
    reveals damage.

    Args:
        path: file to write.
        policy: policy made by a function of ``safe_components.policies``, or by one of your own that
            `policy_builder` decorates.
        norm: scaling of its observations.
        about: further facts as plain data, such as the environment.

    Raises:
        ValueError: if no registered builder made the policy, or if its state holds more than tensors.
    """
    description = policy_description(policy)
    if description is None:
        raise ValueError(
            f"{type(policy).__name__} was not made by a registered builder, so it cannot be made again "
            "without its recipe: decorate the function that makes it with @policy_builder"
        )
    state: dict[str, Tensor] = {f"policy.{name}": value for name, value in policy.state_dict().items()}
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{', '.join(others)} of the policy's state are not tensors")
    state |= {"loc": norm.loc, "scale": norm.scale}
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    text = json.dumps({"policy": description, "about": dict(about or {})})
    write_state(
        path, {"format": _FORMAT, "description": text, "sha256": _digest(text, state), "state": state}
    )


class PolicyFile:
    """The component of a checkpoint that writes the file of a policy.

    Args:
        policy: policy that is trained.
        norm: scaling of its observations.
        about: further facts as plain data.
    """

    def __init__(self, policy: TensorDictModuleBase, norm: ObservationNorm, about: Mapping[str, Any]) -> None:
        self._content = policy, norm, about

    def dump(self, path: Path) -> None:
        """Write the file into the directory ``path``."""
        save_policy(path / POLICY_FILE, *self._content)


def find_policy(source: Path) -> Path:
    """Return the file of the policy in a run directory (of its newest checkpoint) or in a checkpoint.

    Raises:
        FileNotFoundError: if there is no such directory, no checkpoint, or no policy in the checkpoint.
        CheckpointError: if the run holds checkpoints, but none is whole.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such run directory, checkpoint or file of a policy")
    checkpoint = source
    if not (source / "manifest.json").is_file():
        if not (source / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{source} is not a run directory: it holds no {CONFIG_FILE}")
        newest = Checkpoints(source / "checkpoint", config=source / CONFIG_FILE).intact()
        if newest is None:
            raise FileNotFoundError(
                f"{source} holds no checkpoint yet: one is written every checkpoint_interval frames, and "
                "when the run ends or is stopped with Ctrl-C"
            )
        checkpoint = newest
    files = sorted(checkpoint.rglob(POLICY_FILE))
    if not files:
        raise FileNotFoundError(
            f"{checkpoint} holds no {POLICY_FILE}: pass the policy and the scaling of its observations to "
            "Run(..., policy=..., norm=...), and make the policy with a registered builder"
        )
    return files[0]


def import_own_policy(source: Path) -> None:
    """Import the function with which ``--policy package.module:name`` made the policy of a run, if it did.

    The import registers the builder that :func:`load_policy` needs. A file of a policy alone cannot run code
    when it is loaded, so `load_policy` itself imports nothing.

    Args:
        source: run directory; anything else is left alone.

    Raises:
        ValueError: if there is no such function.
        ImportError: if importing its module raises an error.
    """
    path = source / CONFIG_FILE
    policy = (read_yaml(path).get("config") or {}).get("policy") if path.is_file() else None
    if isinstance(policy, Mapping) and OWN in policy:
        import_part(policy[OWN]["function"], f"the policy of {source}")


def load_policy(
    source: str | Path, *, deterministic: bool = True, device: torch.device | str = "cpu"
) -> TensorDictModule:
    """Load a trained policy that takes raw observations and returns actions inside the bounds.

    The result is a TensorDict module. It reads ``observation [..., o]`` in the units of the environment and
    writes ``action [..., a]``. It also maps tensors to tensors, ``action = policy(observation)``. The scaling
    of the observations is inside. Neither the recipe nor the environment is needed.

    Args:
        source: a run directory (its newest checkpoint is taken), a checkpoint, or the file of a policy.
        deterministic: whether to take the deterministic action (the mean of a Gaussian, the most probable
            action of a categorical policy) instead of a sample. TorchRL's exploration type is ignored.
        device: device of the policy.

    Returns:
        The policy in evaluation mode, without gradients. Its ``module`` is a `DeployedPolicy`, a plain
        PyTorch module. The attribute ``about`` of that module holds facts of the run, such as
        ``about["env"]["frame_skip"]``, the number of environment steps that each action is held.

    Raises:
        FileNotFoundError: if there is no run, no checkpoint or no policy in it.
        ValueError: if the file is damaged or of another kind, if its builder is not registered, or if the
            device is not usable.

    Example:
        >>> import tempfile
        >>> from safe_components.policies import gaussian_policy
        >>> from safe_components.training import observation_norm
        >>> path = Path(tempfile.mkdtemp()) / "policy.safetensors"
        >>> save_policy(path, gaussian_policy(3, [-1.0], [1.0]), observation_norm(3))
        >>> policy = load_policy(path)
        >>> policy(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """
    path, where = find_policy(Path(source)), usable_device(str(device))
    description, state = _read(path)
    policy = build_policy(description["policy"])
    norm = {name: state.pop(name) for name in ("loc", "scale")}
    try:
        policy.load_state_dict({name.removeprefix("policy."): value for name, value in state.items()})
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its description: {' '.join(str(error).split())}") from None
    arguments = description["policy"]["arguments"]
    bounds = {name: arguments[name] for name in ("action_low", "action_high")}
    deployed = DeployedPolicy(policy, **norm, **bounds, deterministic=deterministic)
    deployed.about = description["about"]
    deployed = deployed.to(where).eval().requires_grad_(False)
    return TensorDictModule(deployed, in_keys=[keys.OBSERVATION], out_keys=[keys.ACTION])


def export_policy(policy: TensorDictModule, path: Path) -> None:
    """Export a policy for use without this package, by the suffix of ``path``.

    ``.pt2`` is a program of ``torch.export``, for ``torch.export.load`` and AOTInductor. ``.onnx`` is a model
    for ONNX Runtime and other engines, with input ``observation`` and output ``action``. Both map
    observations ``[batch, o]``, float32, to actions ``[batch, a]`` for any batch size. They do not check
    that numbers are finite.

    Args:
        policy: policy from :func:`load_policy`. An exported model that samples has its own random numbers.
        path: file to write.

    Raises:
        ValueError: for another suffix.
        ImportError: if the packages for ONNX are not installed.
    """
    module = policy.module
    # Tracing fixes sizes 0 and 1, so the example has two observations.
    example = module.loc.new_zeros(2, module.loc.shape[0])
    arguments: dict[str, Any] = {"args": (example,), "dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    if path.suffix == ".pt2":
        with _quiet():
            torch.export.save(torch.export.export(module, strict=False, **arguments), path)
    elif path.suffix == ".onnx":
        arguments |= {"input_names": [keys.OBSERVATION], "output_names": [keys.ACTION]}
        try:
            with _quiet():
                torch.onnx.export(
                    module, f=path, dynamo=True, external_data=False, verbose=False, **arguments
                )
        except ModuleNotFoundError as error:
            raise ImportError(
                f"export to ONNX needs {error.name}: pip install 'safe_components[export]'"
            ) from error
    else:
        raise ValueError(f"{path} must end in .pt2 (torch.export) or .onnx")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what PyTorch's exporters say about themselves."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the tensors of a file, without running code from it."""
    document = read_state(path)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f"{path} is not the file of a policy of this version ({_FORMAT})")
    text, state = document["description"], document["state"]
    if document["sha256"] != _digest(text, state):
        raise ValueError(f"{path} is damaged: its checksum differs")
    return json.loads(text), state


def _digest(text: str, state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
