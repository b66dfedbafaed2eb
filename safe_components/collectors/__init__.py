"""A factory for TorchRL's collectors, and a collector that collects while the learner learns."""

from safe_components.collectors.make_collector import make_collector
from safe_components.collectors.overlapped import OverlappedCollector

__all__ = ["OverlappedCollector", "make_collector"]
