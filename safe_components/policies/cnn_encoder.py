"""A small convolutional encoder for images, alone or beside vectors."""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Composite

from safe_components import keys

_CHANNELS = 32
_FEATURES = 50  # of one image


class CnnEncoder(nn.Module):
    """Convolutions over each image, whose features are joined with the vectors as they are.

        image [B, H, W, C] -> 3 convolutions, 3 x 3, stride 2, 32 channels -> linear -> LayerNorm -> tanh

    The last three are the trunk that SAC-AE (Yarats et al. 2019, arXiv 1910.01741) puts behind its
    convolutions.

    Args:
        shapes: shape of each entry without batch size; an image is ``(H, W, C)``.

    Example:
        >>> network = CnnEncoder([(40, 60, 3), (5,)])
        >>> network(torch.zeros(2, 40, 60, 3, dtype=torch.uint8), torch.zeros(2, 5)).shape
        torch.Size([2, 55])
    """

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.images = nn.ModuleList(_convolutions(shape) for shape in shapes if len(shape) == 3)

    def forward(self, *entries: Tensor) -> Tensor:
        """Map entries ``[B, ...]`` to features ``[B, f]``."""
        networks = iter(self.images)
        parts = [
            next(networks)(entry.movedim(-1, -3).float() / 255 - 0.5) if entry.ndim == 4 else entry
            for entry in entries
        ]
        return torch.cat(parts, -1)


def _convolutions(shape: tuple[int, ...]) -> nn.Sequential:
    height, width, channels = shape
    layers: list[nn.Module] = []
    for inputs in (channels, _CHANNELS, _CHANNELS):
        layers += [nn.Conv2d(inputs, _CHANNELS, 3, stride=2, padding=1), nn.ReLU()]
        height, width = -(-height // 2), -(-width // 2)
    trunk = [nn.Linear(_CHANNELS * height * width, _FEATURES), nn.LayerNorm(_FEATURES), nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), *trunk)


def cnn_encoder(spec: Composite) -> TensorDictModule:
    """Make an encoder that reads every image ``[H, W, C]`` in uint8 and every vector in floating point.

    Args:
        spec: entries of one environment, without batch size.

    Raises:
        ValueError: if no entry is an image.

    Example:
        >>> from torchrl.data import Bounded, Unbounded
        >>> camera, sensors = Bounded(0, 255, (8, 8, 3), dtype=torch.uint8), Unbounded(5)
        >>> cnn_encoder(Composite(camera=camera, sensors=sensors)).in_keys
        ['camera', 'sensors']
    """
    entries: list[NestedKey] = list(spec.keys(True, True))
    images = [key for key in entries if spec[key].dtype == torch.uint8 and spec[key].ndim == 3]
    vectors = [key for key in entries if spec[key].dtype.is_floating_point and spec[key].ndim == 1]
    if not images:
        found = {key: (tuple(spec[key].shape), spec[key].dtype) for key in entries}
        raise ValueError(f"cnn_encoder needs an image [H, W, C] in uint8, the environment writes {found}")
    shapes = [tuple(spec[key].shape) for key in (*images, *vectors)]
    return TensorDictModule(CnnEncoder(shapes), in_keys=[*images, *vectors], out_keys=[keys.OBSERVATION])
