"""What one of several processes sees and draws: `ddp_draws.py FOLDER`."""

import json
import os
import sys
from pathlib import Path

import torch
from small import bright_or_dark, config, small_net
from torch.utils.data import DataLoader

import vared2_fx as vr
from vared2_fx.errors import TrainError
from vared2_fx.train.setup import make_accelerator


def main(folder: Path) -> None:
    accelerator = make_accelerator(config(), on_cpu=True)
    loader = accelerator.prepare(DataLoader(range(32), batch_size=4, shuffle=True))
    epochs = [torch.cat(list(loader)).tolist() for _ in range(2)]
    batches = list(DataLoader(bright_or_dark(16, 1), batch_size=8))
    try:
        vr.finetune(vr.convert(small_net()), batches, batches, config())
    except TrainError as error:
        refused = str(error)
    found = {"epochs": epochs, "draw": float(torch.rand(())), "refused": refused}
    found["processes"] = make_accelerator(config(mixed_precision="bf16"), on_cpu=True).num_processes
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
