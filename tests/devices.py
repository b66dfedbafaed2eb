"""Devices that tests run on."""

import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
