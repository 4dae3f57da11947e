"""One of several processes that do not see the same folder when they go on: `ddp_apart.py FOLDER`."""

import json
import os
import sys
from pathlib import Path

import torch
from ddp_run import start
from small import bright_or_dark, config
from torch.utils.data import DataLoader

import vared2_fx as vr
from vared2_fx.errors import CheckpointError


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    train, val = (DataLoader(bright_or_dark(16, seed), batch_size=8) for seed in (1, 2))
    vr.finetune(start("conv"), train, val, config(epochs=1, out=str(folder / "run")))
    own = folder / ("run" if rank == 0 else "elsewhere")
    refused = ""
    try:
        vr.finetune(start("conv"), train, val, config(epochs=1, out=str(own), resume=True))
    except CheckpointError as error:
        refused = str(error)
    (folder / f"{rank}.json").write_text(json.dumps({"refused": refused}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
