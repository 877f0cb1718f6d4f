"""Train StarCoder: Megatron's command line and file formats on PyTorch's own distributed engines."""

__version__ = "0.1.0"
