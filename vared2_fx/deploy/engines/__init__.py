"""One engine per file; imported when they are asked for."""

from vared2_fx.config import EngineName
from vared2_fx.deploy.engines.base import Engine, Settings
from vared2_fx.deploy.engines.compiled import CompileEngine
from vared2_fx.deploy.engines.eager import TorchEngine
from vared2_fx.deploy.engines.onnx_runtime import OnnxEngine
from vared2_fx.deploy.engines.open_vino import OpenVinoEngine

__all__ = ["BY_NAME", "Engine", "Settings"]

BY_NAME: dict[EngineName, type[Engine]] = {
    engine.name: engine for engine in (TorchEngine, CompileEngine, OnnxEngine, OpenVinoEngine)
}
