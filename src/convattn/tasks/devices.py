"""Which device "auto" means, and its name for people."""

import torch


def best_device() -> str:
    """Return the device that "auto" stands for, the one that Lightning takes too: a GPU where there is one.

    Example:
        >>> best_device() in ("cuda", "mps", "cpu")
        True
    """
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def trains_on_cpu(accelerator: str) -> bool:
    """Tell whether training with an accelerator of Lightning's takes place on the CPU.

    Example:
        >>> trains_on_cpu("cpu"), trains_on_cpu("gpu")
        (True, False)
    """
    return accelerator == "cpu" or (accelerator == "auto" and best_device() == "cpu")


def device_name(accelerator: str) -> str:
    """Return what a person knows the device by that an accelerator of Lightning's stands for."""
    if trains_on_cpu(accelerator):
        threads = torch.get_num_threads()
        return "the CPU, 1 thread" if threads == 1 else f"the CPU, {threads} threads"
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return best_device() if accelerator in ("auto", "gpu") else accelerator
