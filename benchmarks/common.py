"""What every benchmark needs: the machine in words, interleaved timing, peak memory, results on disk."""

import ctypes
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import vared2_fx as vr
from vared2_fx.report.environment import processor
from vared2_fx.turns import in_turns

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from networks import randomise_norms

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("x3d_m", "slow_r50", "i3d_r50", "r2plus1d_r50", "csn_r101", "r3d_18")
LAYOUTS = {"channels_last_3d": torch.channels_last_3d, "contiguous": torch.contiguous_format}


def machine() -> dict[str, Any]:
    """Versions, processor and threads of this run."""
    return {
        "vared2_fx": vr.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def network_and_clip(name: str) -> tuple[nn.Module, Tensor]:
    """A network of the zoo in evaluation mode, random weights with norm statistics as in use, and what it takes."""
    torch.manual_seed(0)
    clip = vr.zoo.spec(name).example_inputs()
    return randomise_norms(vr.zoo.load(name).eval(), clip), clip


def interleaved(runs: dict[str, Callable[[], Any]], *, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each run, in turns, so that a change of the machine's speed meets all alike."""
    times = in_turns(runs, rounds=rounds, warmup=warmup)
    return {name: [ms / 1e3 for ms in values] for name, values in times.items()}


def ratios(seconds: dict[str, list[float]], name: str, base: str) -> dict[str, float]:
    """Median, smallest and largest of the round-by-round ratios of `name` to `base`."""
    values = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
    return {"median": median(values), "min": min(values), "max": max(values)}


def keep_memory() -> bool:
    """Let glibc keep what is freed, for the rest of this process; whether it could.

    Otherwise every large map goes back to the system after use, and a batch of them is fetched anew page by page, which
    can take longer than the convolutions: base and variants would be compared by how many maps they make.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except OSError:
        return False
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    taken = [mallopt(mmap_max, 0), mallopt(trim_threshold, 2**31 - 1), mallopt(top_pad, 2**28)]
    return all(taken)


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(script: str, *args: str) -> dict[str, Any]:
    """Run `script` with `args` in a fresh interpreter; the last line it prints is its JSON answer."""
    done = subprocess.run([sys.executable, script, *args], stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def write(name: str, result: dict[str, Any]) -> None:
    """Put a result into `results/` and on the screen."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **result}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
