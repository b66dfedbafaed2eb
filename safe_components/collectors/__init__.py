"""One factory over TorchRL's collectors, and one that collects while you learn."""

from safe_components.collectors.make_collector import make_collector
from safe_components.collectors.overlapped import OverlappedCollector

__all__ = ["OverlappedCollector", "make_collector"]
