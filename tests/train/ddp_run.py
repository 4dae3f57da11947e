"""A fine-tuning run in a process of its own: `ddp_run.py FOLDER BATCH [KILL_AT [SCHEDULE GRANULARITY]]`.

It dies at the batch KILL_AT; at -1 it does not, but shuffles as those that do. With `lost` in its place some clips
cannot be read; with `still` no weight moves.
"""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from small import bright_or_dark, config, small_net
from torch.utils.data import DataLoader, TensorDataset, default_collate

import vared2_fx as vr

LOST = {3, 4, *range(17, 24), *range(40, 48)}
"""Of two processes with batches of 8, these miss two clips, all clips but one, and all clips of one process."""
LOST_ALONE = LOST | set(range(32, 40))
"""The same for one process with batches of 16: where one of two has no clips, no step is taken."""


def without_lost(numbers: list[int], clips: TensorDataset) -> dict[str, object]:
    """A batch of the clips with these numbers, those that cannot be read left out."""
    lost = LOST if "RANK" in os.environ else LOST_ALONE
    kept = [number for number in numbers if number not in lost]
    video, labels = (values[kept] for values in clips.tensors)
    return {"video": video, "label": labels, "num_failed": len(numbers) - len(kept)}


class Killed:
    """Collates clips, and ends the process, with no chance to clean up, when it is asked for a batch too many."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def __call__(self, clips: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return default_collate(clips)


def start(granularity: str) -> torch.fx.GraphModule:
    """The network before it is trained."""
    torch.manual_seed(7)
    options = vr.ConvertConfig(min_macs_share=0.0, granularity=granularity)
    return vr.convert(small_net(), torch.randn(2, 1, 8, 8, 8), options)


def main(folder: str, batch: int, mode: str = "", schedule: str = "joint", granularity: str = "conv") -> None:
    torch.set_num_threads(1)
    dynamic = start(granularity)
    clips = bright_or_dark(64, 1)
    if mode == "lost":
        train = DataLoader(range(64), batch_size=batch, collate_fn=partial(without_lost, clips=clips))
    else:
        collate = Killed(int(mode)) if mode.isdecimal() else None
        train = DataLoader(clips, batch_size=batch, shuffle=mode not in ("", "still"), collate_fn=collate)
    val = DataLoader(bright_or_dark(32, 2), batch_size=16)
    changes = {"epochs": 3, "target_macs": 0.6, "distill_weight": 0.5, "out": folder, "resume": True}
    changes |= {"epochs": 1, "lr": 0.0, "gate_lr": 0.0} if mode == "still" else {}
    result = vr.finetune(dynamic, train, val, config(schedule=schedule, **changes))
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(dynamic.state_dict(), Path(folder, "final.pt"))
        Path(folder, "losses.json").write_text(json.dumps([epoch.train_loss for epoch in result.history]))
        Path(folder, "failed.json").write_text(json.dumps([epoch.num_failed for epoch in result.history]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
