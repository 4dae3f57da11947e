"""OpenVINO, on the processor."""

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from vared2_fx.config import EngineName
from vared2_fx.deploy.engines.base import NO_BF16, Engine, Settings, need
from vared2_fx.deploy.program import Program
from vared2_fx.errors import DeployError

FILE, WEIGHTS_FILE = "model.xml", "model.bin"
MAX_SHAPES = 8
"""Input shapes for which what was compiled is kept; the one that was not used for longest goes first."""
_CORES, _MAKING, _CONVERTING = list[Any](), threading.Lock(), threading.Lock()
_HINT = {"fp32": "f32", "bf16": "bf16"}


@dataclass(slots=True)
class _Compiled:
    """The network compiled for one input shape, and its requests that nobody uses just now."""

    model: Any
    idle: "queue.SimpleQueue[Any]" = field(default_factory=queue.SimpleQueue)


def _core() -> Any:
    """The process's one OpenVINO core.

    Each core's plugin gives the thread a stack for signals, and takes it away with the core. After two whose lives
    overlap the thread is left with one that is gone, and the next signal with a handler in Python ends the process.

    Raises:
        DeployError: openvino is not installed.
    """
    with _MAKING:
        if not _CORES:
            _CORES.append(need("openvino", "openvino").Core())
        return _CORES[0]


@contextmanager
def _untold() -> Iterator[None]:
    """No telemetry of conversions inside the block, whatever the user's consent.

    For each event, such as an operator of the network, OpenVINO forks the process from a thread of its own. What the
    process holds is then written anew page by page, which takes long where that is much, and other threads may hold
    locks.
    """
    try:
        from openvino.tools.ovc.telemetry_utils import init_ovc_telemetry
    except ImportError:  # a release that keeps it elsewhere; it converts all the same
        yield
        return
    with _CONVERTING:
        telemetry = init_ovc_telemetry()
        consent = getattr(telemetry, "consent", False)  # without its package, a stand-in that has none
        telemetry.consent = False
        try:
            yield
        finally:
            telemetry.consent = consent


class OpenVinoEngine(Engine):
    """Runs OpenVINO's CPU plugin, compiled for each input shape.

    Latency hint; the precision is always said, as the plugin's own choice is bf16 where the processor has it.
    """

    name: EngineName = "openvino"
    packages = ("openvino",)

    def __init__(self, model: Any, settings: Settings) -> None:
        """Run `model`, an `openvino.Model`."""
        super().__init__(settings)
        self.model = model
        self._compiled: OrderedDict[tuple[Any, ...], _Compiled] = OrderedDict()
        self._compiling = threading.Lock()

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Look whether it can work.

        Raises:
            DeployError: openvino is missing, or the processor has no bf16.
        """
        able = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if settings.precision == "bf16" and "BF16" not in able:
            raise DeployError(NO_BF16)

    @classmethod
    def build(cls, program: Program, settings: Settings) -> Self:
        """Convert the program."""
        openvino = need("openvino", "openvino")
        with torch.no_grad(), _untold():
            return cls(openvino.convert_model(program.exported), settings)

    @classmethod
    def read(cls, files: Mapping[str, Path], settings: Settings) -> Self:
        """Read a saved model."""
        return cls(_core().read_model(files[FILE], files[WEIGHTS_FILE]), settings)

    def write(self, folder: Path) -> None:
        """Write OpenVINO's own format, weights in float32."""
        need("openvino", "openvino").save_model(self.model, folder / FILE, compress_to_fp16=False)

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """From the tensors of a call to those of its answer."""
        compiled = self._for_shape(tuple(tuple(x.shape) for x in tensors))
        try:
            request = compiled.idle.get_nowait()
        except queue.Empty:
            request = compiled.model.create_infer_request()
        try:
            answer = request.infer([x.detach().contiguous().numpy() for x in tensors])
            return [torch.from_numpy(answer[i].copy()) for i in range(len(compiled.model.outputs))]
        finally:
            compiled.idle.put(request)

    def _for_shape(self, shapes: tuple[Any, ...]) -> _Compiled:
        with self._compiling:
            if shapes not in self._compiled:
                self._compiled[shapes] = _Compiled(self._compile(shapes))
                if len(self._compiled) > MAX_SHAPES:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(shapes)
            return self._compiled[shapes]

    def _compile(self, shapes: tuple[Any, ...]) -> Any:
        model = self.model.clone()
        model.reshape({node: list(shape) for node, shape in zip(model.inputs, shapes, strict=True)})
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINT[self.settings.precision],
        }
        if self.settings.threads is not None:
            config["INFERENCE_NUM_THREADS"] = self.settings.threads
        return _core().compile_model(model, "CPU", config)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it computes."""
        return ("compiled for each input shape at the first call with it",)
