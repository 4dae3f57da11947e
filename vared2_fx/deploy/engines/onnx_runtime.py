"""ONNX, in onnxruntime."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from vared2_fx.config import EngineName
from vared2_fx.deploy.engines.base import Engine, Settings, need
from vared2_fx.deploy.program import Program, quiet_export
from vared2_fx.errors import DeployError

FILE = "model.onnx"
OPSET = 18
"""What torch's exporter writes without converting between versions; onnxruntime reads it since 1.14."""


class OnnxEngine(Engine):
    """Runs an ONNX file on onnxruntime's CPU provider."""

    name: EngineName = "onnx"
    packages = ("onnxruntime", "onnx")

    def __init__(self, model: bytes, settings: Settings) -> None:
        """Run the serialised `model`."""
        super().__init__(settings)
        self.model = model
        runtime = need("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = settings.threads or 0
        options.log_severity_level = 3
        self._session: Any = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._inputs = [node.name for node in self._session.get_inputs()]

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Look whether it can work.

        Raises:
            DeployError: a package is missing, or bf16 is asked for.
        """
        for package in ("onnx", "onnxscript", "onnxruntime"):
            need(package, "onnx")
        if settings.precision == "bf16":
            raise DeployError(
                "deploy: engine 'onnx' has no precision 'bf16': onnxruntime has no convolution in bfloat16 on the "
                "processor. Take engine='openvino', or precision='fp32'."
            )

    @classmethod
    def build(cls, program: Program, settings: Settings) -> Self:
        """Export the program to ONNX, weights included."""
        with torch.no_grad(), quiet_export():
            exported = torch.onnx.export(
                program.exported, dynamo=True, opset_version=OPSET, verbose=False, optimize=True
            )
        assert exported is not None
        return cls(exported.model_proto.SerializeToString(), settings)

    @classmethod
    def read(cls, files: Mapping[str, Path], settings: Settings) -> Self:
        """Read a saved model."""
        return cls(files[FILE].read_bytes(), settings)

    def write(self, folder: Path) -> None:
        """Write the model."""
        (folder / FILE).write_bytes(self.model)

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """From the tensors of a call to those of its answer."""
        arrays = [x.detach().contiguous().numpy() for x in tensors]
        return [torch.from_numpy(y) for y in self._session.run(None, dict(zip(self._inputs, arrays, strict=True)))]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it computes."""
        return (f"ONNX opset {OPSET}",)
