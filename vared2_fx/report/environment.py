"""Where numbers were taken."""

import platform

import torch
from torch import nn

from vared2_fx.report.document import Environment


def environment(dynamic: nn.Module) -> Environment:
    """Describe this machine, and how `dynamic` lies on it."""
    import vared2_fx  # not above: the package's own __init__ imports this module

    first = next(dynamic.parameters())
    device = first.device
    return Environment(
        vared2_fx=vared2_fx.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        processor=device_name(device),
        device=str(device),
        threads=torch.get_num_threads(),
        dtype=str(first.dtype).removeprefix("torch."),
        layout=layout(dynamic),
    )


def device_name(device: torch.device) -> str:
    """What computes there."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """The processor's name, as far as the system tells it, and the vector instructions that torch uses on it.

    Some systems tell no more than a maker's name, of processors that differ threefold in speed.
    """
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:  # not Linux
        names = []
    name = (names or [platform.processor() or platform.machine()])[0]
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def layout(dynamic: nn.Module) -> str:
    """`channels_last_3d` where a convolution's weights lie so, else `contiguous`."""
    last = torch.channels_last_3d
    weights = (weight for weight in dynamic.parameters() if weight.dim() == 5 and not weight.is_contiguous())
    return "channels_last_3d" if any(w.is_contiguous(memory_format=last) for w in weights) else "contiguous"
