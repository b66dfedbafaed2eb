"""One factory over TorchRL's collectors."""
