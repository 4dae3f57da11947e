"""A fine-tuning run in a process of its own: `ddp_run.py FOLDER BATCH [KILL_AT [SCHEDULE GRANULARITY]]`.

It dies at the batch KILL_AT; at -1 it does not, but shuffles as those that do.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from small import bright_or_dark, config, small_net
from torch.utils.data import DataLoader

import vared2_fx as vr


class Killed:
    """A loader that ends the process, with no chance to clean up, when it is asked for a batch too many."""

    def __init__(self, loader: DataLoader, batches: int) -> None:
        self.loader, self.left = loader, batches

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            yield batch


def main(folder: str, batch: int, kill_at: int | None, schedule: str = "joint", granularity: str = "conv") -> None:
    torch.set_num_threads(1)
    torch.manual_seed(7)
    options = vr.ConvertConfig(min_macs_share=0.0, granularity=granularity)
    dynamic = vr.convert(small_net(), torch.randn(2, 1, 8, 8, 8), options)
    train = DataLoader(bright_or_dark(64, 1), batch_size=batch, shuffle=kill_at is not None)
    train = train if kill_at in (None, -1) else Killed(train, kill_at)
    val = DataLoader(bright_or_dark(32, 2), batch_size=16)
    changes = {"epochs": 3, "target_macs": 0.6, "distill_weight": 0.5, "out": folder, "resume": True}
    result = vr.finetune(dynamic, train, val, config(schedule=schedule, **changes))
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(dynamic.state_dict(), Path(folder, "final.pt"))
        Path(folder, "losses.json").write_text(json.dumps([epoch.train_loss for epoch in result.history]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None, *sys.argv[4:])
