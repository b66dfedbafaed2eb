"""Components for safe reinforcement learning with TorchRL."""
