"""One of several processes that see other clips when they evaluate, and another folder when they go on.

`ddp_apart.py FOLDER`
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from ddp_run import start
from small import bright_or_dark, config
from torch.utils.data import DataLoader

import vared2_fx as vr
from vared2_fx.errors import CheckpointError
from vared2_fx.train.target import TargetController


class Watched(TargetController):
    """What it is told of evaluations."""

    def evaluated(self, share: float) -> None:
        SHARES.append(share)
        super().evaluated(share)


SHARES: list[float] = []


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    sys.modules["vared2_fx.train.objective"].TargetController = Watched
    train = DataLoader(bright_or_dark(128, 1), batch_size=8)
    val = DataLoader(bright_or_dark(16, 2), batch_size=8)
    wrong = [(clips + rank, 1 - labels) for clips, labels in val]  # gets worse where the other gets better
    settings = {"epochs": 4, "lr": 1e-2, "gate_lr": 5e-2, "target_macs": 0.6, "patience": 1}
    result = vr.finetune(start("conv"), train, wrong if rank else val, config(out=str(folder / "run"), **settings))
    found = {"history": [asdict(epoch) for epoch in result.history], "shares": SHARES, "refused": ""}
    own = folder / ("elsewhere" if rank else "run")
    try:
        vr.finetune(start("conv"), train, val, config(out=str(own), resume=True, **settings))
    except CheckpointError as error:
        found["refused"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
