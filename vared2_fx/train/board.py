"""The epochs of a run for TensorBoard."""

from pathlib import Path

from vared2_fx.config import FinetuneConfig
from vared2_fx.errors import TrainError
from vared2_fx.train.history import EpochLog

_SCALARS = {
    "train/loss": "train_loss",
    "train/accuracy": "train_accuracy",
    "train/share": "train_share",
    "val/accuracy": "accuracy",
    "val/share": "share",
    "val/min_share": "min_share",
    "val/max_share": "max_share",
    "val/objective": "objective",
    "val/alarms": "alarms",
}


class Board:
    """Writes into `config.out`/tensorboard; nothing before the first epoch."""

    def __init__(self, config: FinetuneConfig) -> None:
        """Look for TensorBoard.

        Raises:
            TrainError: it is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as exc:
            raise TrainError(
                "finetune: tensorboard=True needs a package that is missing: pip install 'vared2_fx[tensorboard]'. "
                "Without it, `vared2 report --run` shows the same numbers."
            ) from exc
        assert config.out is not None
        self._folder, self._make = Path(config.out) / "tensorboard", SummaryWriter

    def write(self, epoch: EpochLog) -> None:
        """Add an epoch. What a killed run had written of it and later ones is dropped."""
        writer = self._make(str(self._folder), purge_step=epoch.epoch)
        for name, field in _SCALARS.items():
            writer.add_scalar(name, getattr(epoch, field), epoch.epoch)
        for path, layer in epoch.layers.items():
            for name, value in layer.items():
                writer.add_scalar(f"{name} by region/{path}", value, epoch.epoch)
        writer.close()
