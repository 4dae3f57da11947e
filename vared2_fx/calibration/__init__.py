"""Before any training: what clips say of a network's redundancy, and choices that begin from it [ours]."""

from vared2_fx.calibration.calibrate import Calibration, ChoiceFit, LayerCalibration, calibrate
from vared2_fx.calibration.redundancy import LayerRedundancy, Predicted, Redundancy, redundancy

__all__ = [
    "Calibration",
    "ChoiceFit",
    "LayerCalibration",
    "LayerRedundancy",
    "Predicted",
    "Redundancy",
    "calibrate",
    "redundancy",
]
