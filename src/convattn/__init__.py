"""Operators that are convolution and self-attention at once: ACmix and X-volution for PyTorch."""

__version__ = "0.1.0"
