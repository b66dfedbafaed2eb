"""One factory over TorchRL's collectors."""

from safe_components.collectors.make_collector import make_collector

__all__ = ["make_collector"]
