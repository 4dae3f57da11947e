"""Run an exported bundle: needs numpy and the bundle's engine, PyAV where clips come from videos, and no torch.

A copy of this file alone lies in each bundle: `python bundle/runtime.py bundle video.mp4`.

N clips, K routes, cheapest first; the last computes everything. C channels, T frames, H height, W width.
"""

import argparse
import hashlib
import heapq
import importlib
import json
import math
import queue
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

try:
    import av
    from av.video.reformatter import VideoReformatter
except ImportError:  # clips may come from elsewhere
    av = None  # type: ignore[assignment]

FORMAT_VERSION = 2
MANIFEST = "bundle.json"
NO_PYAV = "To read videos PyAV is needed: pip install av"
ENGINES = ("onnx", "openvino")
SOME_UNREADABLE, USER_ERROR = 4, 2
"""Exit codes."""
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_KEYS = {
    *("format_version", "engine", "network", "versions", "classes", "clip_shape", "clip", "routes", "router"),
    *("curve", "quality", "default_budget", "sizes", "files", "sha256"),
}
_EARLY_S = 1e-3  # containers round times to as much as a millisecond: 2/30 s is stored as 0.067 in Matroska
_REORDER = 4  # frames whose time stamps are sorted again; MPEG-4 allows fewer frames of reordering than this

Floats = NDArray[Any]
Places = NDArray[np.int64]


class BundleError(ValueError):
    """A bundle, or a clip for it, cannot be used; the text says why and what to do."""


def taken(keeps: Floats, shares: Sequence[float], price: float) -> Places:
    """The route of each clip: int64 (N,).

    Args:
        keeps: (N, K − 1), probability that a route keeps the answer; the full one keeps it for sure.
        shares: (K,) multiply-adds, of the original's.
        price: what the whole network's multiply-adds cost, in units of that probability.
    """
    sure = np.concatenate([keeps, np.ones((len(keeps), 1))], axis=1)
    return np.asarray((sure - price * np.asarray(shares)).argmax(1))


def route_batch(
    count: int,
    *,
    first: int | None,
    price: float,
    confidence: float,
    shares: Sequence[float],
    score: Callable[[], Floats],
    run: Callable[[int, Places], Floats],
) -> tuple[Floats, Places, NDArray[np.bool_]]:
    """Answer a batch of clips, each by its route, the clips of one route together.

    The clips themselves stay with the caller, on whatever device they are: only scores come here.

    Args:
        count: N ≥ 1.
        first: the route that all clips take; None: the router chooses.
        price: see `taken`.
        confidence: the full network runs too where the largest softmax value of a cheaper route is below this.
        shares: (K,) multiply-adds of the routes.
        score: gives the router's logits of all clips, (N, K − 1).
        run: from a route's number and the places of n clips, int64 (n,), to their class scores (n, classes).

    Returns:
        Class scores (N, classes), the route of each clip, and whether the full network ran after it.
    """
    if first is None:
        routes = taken(1 / (1 + np.exp(-np.asarray(score(), dtype=np.float64))), shares, price)
    else:
        routes = np.full(count, first, dtype=np.int64)
    last, outputs = len(shares) - 1, None
    again = np.zeros(count, dtype=bool)
    for route in np.unique(routes):
        places = np.flatnonzero(routes == route)
        got = run(int(route), places)
        outputs = np.empty((count, *got.shape[1:]), got.dtype) if outputs is None else outputs
        outputs[places] = got
        if route < last and confidence > 0:
            again[places] = largest_softmax(got) < confidence
    if again.any():
        outputs[again] = run(last, np.flatnonzero(again))  # type: ignore[index]
    assert outputs is not None
    return outputs, routes, again


def shares_of(routes: Places, again: NDArray[np.bool_], *, shares: Sequence[float], router_share: float) -> Floats:
    """Multiply-adds of each clip, of the original's: its route, the full network if it ran after it, the router: (N,).

    Args:
        routes: the route of each clip, int64 (N,).
        again: whether the full network ran after it, (N,).
        shares: (K,) multiply-adds of the routes.
        router_share: those of the router; 0 where it did not run.
    """
    return np.asarray(np.asarray(shares)[routes] + again * shares[-1] + router_share)


def expected_ms(first: int | None, mix: Sequence[float], route_ms: Sequence[float], router_ms: float) -> float:
    """Mean time of a clip in milliseconds.

    Args:
        first: see `route_batch`.
        mix: (K,) runs of each route per clip.
        route_ms: (K,) time of one run.
        router_ms: time of the router for a clip.
    """
    routes: float = sum(part * ms for part, ms in zip(mix, route_ms, strict=True))
    return routes + (router_ms if first is None else 0.0)


def best_within(shares: Sequence[float], qualities: Sequence[float], budget: float) -> int:
    """Place of the best operating point that costs at most `budget`; of the first, the cheapest, where none does."""
    within = [place for place, share in enumerate(shares) if share <= budget + 1e-9]
    return max(within, key=lambda place: qualities[place], default=0)


def best_point(
    shares: Sequence[float], qualities: Sequence[float], ms: Sequence[float], *, budget: float, target_ms: float
) -> int:
    """Place of the best operating point within both limits; where none is fast enough, of the fastest."""
    fast = [place for place, time_ms in enumerate(ms) if time_ms <= target_ms]
    if not fast:
        return int(np.argmin(ms))
    return fast[best_within([shares[place] for place in fast], [qualities[place] for place in fast], budget)]


def largest_softmax(scores: Floats) -> Floats:
    """Class scores (N, classes) → the largest probability of each row, (N,)."""
    return np.asarray(1 / np.exp(scores - scores.max(1, keepdims=True), dtype=np.float64).sum(1))


def chunks(count: int, sizes: Sequence[int]) -> list[slice]:
    """Cut `count` clips into parts of the given sizes, the largest first; one part where there are no sizes."""
    if not sizes:
        return [slice(0, count)] if count else []
    parts, start = [], 0
    while start < count:
        size = max(size for size in sizes if size <= count - start)
        parts.append(slice(start, start + size))
        start += size
    return parts


class Bundle:
    """An exported bundle: `Bundle("bundle").answer(clips)`, from as many threads as one likes.

    Every file is read once, compared with its checksum, and handed to the engine as it was read.
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None, max_batch: int | None = None) -> None:
        """Read a bundle and let the engine take it over.

        Args:
            folder: where it was exported to.
            threads: threads of one call; None leaves that to the engine.
            max_batch: clips that come at once, at most, if that is known: an engine that compiles each shape then
                compiles none that is larger.

        Raises:
            BundleError: a number below 1; or files are missing, changed, truncated, outside of the folder, or of
                another version; or the engine is not installed, or cannot run them.
        """
        if (threads is not None and threads < 1) or (max_batch is not None and max_batch < 1):
            raise BundleError(f"Bundle: threads={threads}, max_batch={max_batch}; at least 1 each, or None.")
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.engine = str(self.manifest["engine"])
        self.classes = [str(name) for name in self.manifest["classes"]]
        self.clip_shape = tuple(self.manifest["clip_shape"])
        self.shares = [float(route["share"]) for route in self.manifest["routes"]]
        self._sizes = [size for size in self.manifest["sizes"] if max_batch is None or size <= max_batch]
        router = self.manifest["router"]
        started = {name for part in _parts(self.manifest) for name in part["files"]}
        for name in self.manifest["files"].keys() - started:
            self._read(name)
        self._routes = [self._start(route["files"], threads) for route in self.manifest["routes"]]
        self._router = self._start(router["files"], threads) if router else None
        self._router_share = float(router["share"]) if router else 0.0

    def point(self, budget: float | None = None, target_ms: float | None = None) -> dict[str, Any]:
        """The best operating point within both limits; below the cheapest, that one.

        Args:
            budget: mean multiply-adds per clip, of the original's. If both are None, what the gated network took.
            target_ms: mean time per clip in the engine, in milliseconds, by the times of the machine that exported.

        Raises:
            BundleError: one of them is no positive number.
        """
        for name, value in (("budget", budget), ("target_ms", target_ms)):
            if value is not None and not 0 < value < float("inf"):
                what = "a share of the original's multiply-adds, such as 0.6" if name == "budget" else "milliseconds"
                raise BundleError(f"{name}={value}; {what}.")
        if budget is None:
            budget = float(self.manifest["default_budget"]) if target_ms is None else float("inf")
        curve: list[dict[str, Any]] = self.manifest["curve"]
        shares, qualities = [point["share"] for point in curve], [point["quality"] for point in curve]
        limit = float("inf") if target_ms is None else target_ms
        return curve[best_point(shares, qualities, [*map(self._ms, curve)], budget=budget, target_ms=limit)]

    def _ms(self, point: dict[str, Any]) -> float:
        routes, router = self.manifest["routes"], self.manifest["router"]
        router_ms = router["ms"] if router else 0.0
        return expected_ms(point["first"], point["mix"], [route["ms"] for route in routes], router_ms)

    def answer(
        self, clips: Floats, *, budget: float | None = None, target_ms: float | None = None
    ) -> tuple[Floats, Places, Floats]:
        """Let each clip take its route.

        Args:
            clips: float32 (N, C, T, H, W), N ≥ 1, as `read_clip` gives them.
            budget: as for `point`.
            target_ms: as for `point`.

        Returns:
            Class scores (N, classes); the route that answered each clip (N,); multiply-adds of each clip (N,), as a
            share of the original's, router included.

        Raises:
            BundleError: clips of another size or type, or a limit that is no positive number.
        """
        clips = np.asarray(clips)
        if clips.dtype != np.float32 or clips.shape[1:] != self.clip_shape or not len(clips):
            wanted = ", ".join(map(str, self.clip_shape))
            raise BundleError(f"Clips of {clips.shape}, {clips.dtype}; these routes take float32 (N, {wanted}).")
        point = self.point(budget, target_ms)

        def score() -> Floats:
            assert self._router is not None
            return self._cut(self._router, clips)

        scores, routes, again = route_batch(
            len(clips),
            first=point["first"],
            price=float(point["price"]),
            confidence=float(point["confidence"]),
            shares=self.shares,
            score=score,
            run=lambda route, places: self._cut(
                self._routes[route], clips if len(places) == len(clips) else clips[places]
            ),
        )
        router_share = self._router_share if point["first"] is None else 0.0
        cost = shares_of(routes, again, shares=self.shares, router_share=router_share)
        return scores, np.where(again, len(self.shares) - 1, routes), cost

    def read_clip(self, path: str | Path) -> Floats:
        """The clip in the middle of a video, as the network was made for: float32 (1, 3, T, crop, crop).

        Raises:
            BundleError: the file is missing, is no video, ends before the clip, or nothing of that can be decoded.
        """
        return self.read_counted(path)[0]

    def read_counted(self, path: str | Path) -> tuple[Floats, int]:
        """Like `read_clip`; and how many of the T frames the file lacks, see `Video.pictures_at`.

        Raises:
            BundleError: as for `read_clip`.
        """
        clip = self.manifest["clip"]
        with Video(path) as video:
            start_s = max(0.0, (video.duration_s - clip["duration_s"]) / 2)
            frames, num_missing = video.pictures_at([start_s + offset for offset in clip["offsets_s"]])
        pictures = resized_centre(frames, clip["short_side"], clip["crop"])
        values = (pictures.astype(np.float32) / 255 - np.float32(clip["mean"])) / np.float32(clip["std"])
        return np.ascontiguousarray(values.transpose(3, 0, 1, 2)[None], dtype=np.float32), num_missing

    def _cut(self, run: Callable[[Floats], Floats], clips: Floats) -> Floats:
        parts = chunks(len(clips), self._sizes)
        return np.concatenate([run(np.ascontiguousarray(clips[part])) for part in parts])

    def _start(self, names: Sequence[str], threads: int | None) -> Callable[[Floats], Floats]:
        data = [self._read(name) for name in names]
        try:
            if self.engine == "onnx":
                return _onnx(data[0], threads)
            return _openvino(data[0], data[1], threads, [(size, *self.clip_shape) for size in self._sizes])
        except BundleError:
            raise
        except Exception as exc:
            made = ", ".join(f"{name} {number}" for name, number in self.manifest["versions"].items())
            raise BundleError(
                f"{self.folder}: {self.engine} cannot run {names[0]} ({type(exc).__name__}: "
                f"{str(exc).strip()[:200]}). It was made with {made}."
            ) from exc

    def _read(self, name: str) -> bytes:
        path = inside(self.folder, name)
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise BundleError(f"{path} cannot be read: {exc.strerror or exc}. Export the bundle again.") from exc
        if hashlib.sha256(data).hexdigest() != self.manifest["files"].get(name):
            raise BundleError(f"{path} was changed after it was exported, or is damaged: its SHA-256 is another.")
        return data


def inside(folder: Path, name: Any) -> Path:
    """The file `name` of a bundle.

    Raises:
        BundleError: it would lie elsewhere.
    """
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise BundleError(f"{folder}: the manifest names the file {name!r:.80}, which is no plain name in the bundle.")
    path = folder / name
    if path.is_symlink():
        raise BundleError(f"{path} is a link; a bundle's files lie in the bundle.")
    return path


def digest(document: dict[str, Any]) -> str:
    """SHA-256 of a JSON document, however it is laid out."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_document(
    path: Path, *, where: str, version: int, keys: set[str], remedy: str, error: type[Exception]
) -> dict[str, Any]:
    """Read a JSON document that a release of this package wrote, its own checksum checked and taken off.

    Args:
        path: of the file.
        where: the call that reads it, for errors.
        version: the format version that is read.
        keys: what it has to hold.
        remedy: what to do about another version.
        error: what to raise: it cannot be read, is of another version, lacks a key, or was changed since.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise error(f"{where}: {path} cannot be read: {exc.strerror or exc}.") from exc
    except (ValueError, RecursionError) as exc:
        raise error(f"{where}: {path} is no valid JSON ({exc}); the file is damaged.") from exc
    found = document.get("format_version") if isinstance(document, dict) else None
    if type(found) is not int or found != version:
        raise error(f"{where}: {path} has format version {found!r}, this release reads {version}; {remedy}.")
    if missing := keys - document.keys():
        raise error(f"{where}: {path} lacks {', '.join(sorted(missing))}; the file is damaged.")
    if document.pop("sha256") != digest(document):
        raise error(f"{where}: {path} was changed after it was written, or is damaged: its checksum is another.")
    return dict(document)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check a bundle's manifest.

    Raises:
        BundleError: it is missing, damaged, of another version, or names files outside of the bundle.
    """
    path = inside(folder, MANIFEST)
    if not path.is_file():
        raise BundleError(f"{path} is not there. Is {folder} an exported bundle?")
    document = read_document(
        path,
        where="Bundle",
        version=FORMAT_VERSION,
        keys=_KEYS,
        remedy="take the runtime.py in the bundle, or export it again",
        error=BundleError,
    )
    if document["engine"] not in ENGINES:
        raise BundleError(f"{path}: engine {document['engine']!r:.40} is none of {', '.join(ENGINES)}.")
    try:
        _check_contents(document)
        named = [*document["files"], *(name for part in _parts(document) for name in part["files"])]
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        raise BundleError(
            f"{path} does not hold what a bundle's does ({type(exc).__name__}: {exc}). Export it again."
        ) from exc
    for name in named:
        inside(folder, name)
    return document


def _parts(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Routes, and the router if there is one."""
    return [*document["routes"], *([document["router"]] if document["router"] else [])]


def _check_contents(document: dict[str, Any]) -> None:
    """Touch all that is used later, in the way in which it is used."""
    count, clip = len(document["routes"]), document["clip"]
    known = [float(part[key]) for part in _parts(document) for key in ("share", "ms")]
    known += [float(point[key]) for point in document["curve"] for key in ("price", "confidence", "share", "quality")]
    known += [float(document["default_budget"]), float(clip["duration_s"]), *map(float, clip["offsets_s"])]
    sizes = [*document["clip_shape"], *document["sizes"], clip["short_side"], clip["crop"]]
    if not np.isfinite(known).all() or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError("a number that cannot be")
    buckets = document["sizes"]
    if not count or not document["curve"] or len(document["clip_shape"]) != 4 or (buckets and 1 not in buckets):
        raise ValueError("no route, no operating point, or no size")
    for point in document["curve"]:
        first = point["first"]
        if len(point["mix"]) != count or (first is not None and first not in range(count)):
            raise ValueError("an operating point of other routes")
        if first is None and not document["router"]:
            raise ValueError("an operating point of a router that is not there")
    [*map(str, document["classes"]), *document["files"].items(), *document["versions"].items()]
    np.zeros(3) + np.float32(clip["mean"]) + np.float32(clip["std"])


def _need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as exc:
        raise BundleError(f"{package} cannot be imported ({exc}): pip install {package}") from exc


def _onnx(model: bytes, threads: int | None) -> Callable[[Floats], Floats]:
    runtime = _need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads or 0, 3
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda clips: np.asarray(session.run(None, {name: clips})[0])


_CORES: list[Any] = []


def _openvino(
    xml: bytes, weights: bytes, threads: int | None, shapes: Sequence[tuple[int, ...]]
) -> Callable[[Floats], Floats]:
    """Compiled for each of `shapes` before the first call: no clip waits for that."""
    openvino = _need("openvino")
    if not _CORES:  # one for the process: the plugin's signal stack goes with the core
        _CORES.append(openvino.Core())
    model = _CORES[0].read_model(xml, weights)
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    compiled: dict[int, tuple[Any, queue.SimpleQueue[Any]]] = {}  # with the requests that nobody uses just now
    for shape in shapes:
        own = model.clone()
        own.reshape(list(shape))
        compiled[shape[0]] = _CORES[0].compile_model(own, "CPU", config), queue.SimpleQueue()

    def run(clips: Floats) -> Floats:
        of_size, idle = compiled[len(clips)]
        try:
            request = idle.get_nowait()
        except queue.Empty:
            request = of_size.create_infer_request()
        try:
            return np.array(request.infer([clips])[0])
        finally:
            idle.put(request)

    return run


def resized_centre(frames: NDArray[np.uint8], short_side: int, crop: int) -> NDArray[np.uint8]:
    """Scale the shorter side to `short_side` (bilinear, smoothed) and cut the centre out.

    From (T, H, W, 3) to (T, crop, crop, 3), within one grey level of what torchvision's `Resize` gives.
    """
    height, width = frames.shape[1:3]
    short = min(height, width)
    rows = _weights(height, int(short_side * height / short), crop)
    columns = _weights(width, int(short_side * width / short), crop)
    out = np.empty((len(frames), crop, crop, 3), np.uint8)
    for t, frame in enumerate(frames):
        tall = np.tensordot(rows, frame.astype(np.float32), axes=(1, 0))
        both = np.tensordot(tall, columns, axes=(1, 1)).transpose(0, 2, 1)
        out[t] = np.clip(np.rint(both), 0, 255)
    return out


def _weights(size: int, scaled: int, crop: int) -> NDArray[np.float32]:
    """From `size` pixels to the central `crop` of `scaled`: (crop, size); each row a triangle over what it averages."""
    scale = size / scaled
    first = round((scaled - crop) / 2)
    centres = scale * (np.arange(first, first + crop) + 0.5)
    distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(1.0, scale)
    weights = np.maximum(0.0, 1.0 - distance)
    return np.asarray(weights / weights.sum(1, keepdims=True), dtype=np.float32)


SomeVideo = TypeVar("SomeVideo", bound="Video")


class Video:
    """An open video file, of which only the frames of a clip are held.

    Args:
        path: the file.

    Raises:
        BundleError: the file is missing, not a video, or has no video stream; or PyAV is not installed.
    """

    error: type[Exception] = BundleError
    """What is raised."""

    def __init__(self, path: str | Path) -> None:
        if av is None:
            raise BundleError(NO_PYAV)
        self.path = str(path)
        if not Path(path).is_file():
            raise self.error(f"`{path}` does not exist. Check the path.")
        self._container = self._open()
        self._packets_s = list[float]()  # when the frames begin whose packets were read since the last seek
        try:
            if not self._container.streams.video:
                raise self.error(f"`{path}` has no video stream. Give a file with pictures in it.")
            self._stream = self._container.streams.video[0]
            self._start_s = float((self._stream.start_time or 0) * self._time_base)
            self.duration_s = self._find_duration()
        except BaseException:
            self._container.close()
            raise

    def _open(self) -> Any:
        try:
            return av.open(self.path)
        except (av.FFmpegError, OSError) as error:
            raise self.error(
                f"`{self.path}` is not a readable video ({_reason(error)}). Play it to see whether it is damaged."
            ) from error

    @property
    def fps(self) -> float:
        """Mean frame rate, in frames per second; 25 where the file does not say."""
        return float(self._stream.average_rate or self._stream.guessed_rate or 25)

    def pictures_at(self, times_s: Sequence[float]) -> tuple[NDArray[np.uint8], int]:
        """Decode the picture that is on screen at each time.

        Args:
            times_s: ascending, in seconds from the beginning of the video. After the end, and where the
                decoder fails, the last picture before stays on screen.

        Returns:
            (T, H, W, 3) uint8 RGB, upright as the file says (phones store a rotation), and for how many of the T times
            there is no picture: after the end of the last frame, and where frames are damaged.

        Raises:
            BundleError: there is none for any of them.
        """
        shown, num_missing = self._shown_at(times_s, seek=True)
        if shown[0] is None and times_s[0] > 0:  # the seek went too far: decode from the beginning
            shown, num_missing = self._shown_at(times_s, seek=False)
        first = next((frame for frame in shown if frame is not None), None)
        if first is None or num_missing == len(times_s):
            raise self.error(
                f"`{self.path}`: no frame can be decoded between {times_s[0]:.2f} s and {times_s[-1]:.2f} s: it ends "
                "before that, or is damaged there. Play it, or copy it again."
            )
        to_rgb = VideoReformatter()  # shared: to set it up takes longer than to convert a small frame
        pictures: list[NDArray[Any]] = []
        for i, frame in enumerate(shown):
            if i and frame is shown[i - 1]:
                pictures.append(pictures[-1])
            else:  # one size for all: a stream may change its own half way
                rgb = to_rgb.reformat(frame or first, first.width, first.height, format="rgb24")
                pictures.append(rgb.to_ndarray())
        return np.rot90(np.stack(pictures), round(first.rotation / 90), axes=(1, 2)), num_missing

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self: SomeVideo) -> SomeVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _time_base(self) -> Fraction:
        return self._stream.time_base or Fraction(1, 1000)

    def _find_duration(self) -> float:
        """Take the duration from the stream, else from the container, else from the packets, in seconds."""
        if self._stream.duration:
            return float(self._stream.duration * self._time_base)
        if self._container.duration:
            return float(self._container.duration / av.time_base)
        end = 0
        try:
            for packet in self._container.demux(self._stream):
                if packet.pts is not None:
                    end = max(end, packet.pts + (packet.duration or 0))
        except av.FFmpegError:
            pass  # a broken tail: the packets before it count
        return max(float(end * self._time_base) - self._start_s, 0.0)

    def _shown_at(self, times_s: Sequence[float], *, seek: bool) -> tuple[list[Any], int]:
        """Find the frame on screen at each time, None before the first; and for how many there should be another."""
        shown, num_missing = list[Any](), 0
        last, begin_s, end_s = None, -math.inf, -math.inf
        for start_s, frame in self._decode_from(times_s[0] if seek else 0.0):
            while len(shown) < len(times_s) and (time_s := times_s[len(shown)]) < start_s - _EARLY_S:
                shown.append(last)
                num_missing += time_s > end_s - _EARLY_S and self._came(begin_s, time_s)
            last, begin_s = frame, start_s
            end_s = start_s + max(float((frame.duration or 0) * self._time_base), 1.0 / self.fps)
            if len(shown) == len(times_s):
                break
        rest = times_s[len(shown) :]
        return shown + [last] * len(rest), num_missing + sum(time_s > end_s - _EARLY_S for time_s in rest)

    def _came(self, after_s: float, until_s: float) -> bool:
        """Whether the file has a frame that begins in between, decoded or not; in time-lapses none is due."""
        return any(after_s + _EARLY_S < start_s <= until_s + _EARLY_S for start_s in self._packets_s)

    def _decode_from(self, time_s: float) -> Iterator[tuple[float, Any]]:
        """Decode on from the key frame before `time_s`: (start in seconds, frame) in the order of showing.

        Decoders give frames in the right order, but not always with the right time stamps (AVI stores only
        the order of decoding): so the stamps are sorted, and the frames are not.
        """
        starts: list[float] = []
        frames: deque[Any] = deque()
        last_s = -1.0 / self.fps
        for frame in self._decode_raw(time_s):
            last_s = last_s + 1.0 / self.fps if frame.pts is None else float(frame.pts * self._time_base)
            heapq.heappush(starts, last_s - self._start_s)
            frames.append(frame)
            if len(frames) > _REORDER:
                yield heapq.heappop(starts), frames.popleft()
        while frames:
            yield heapq.heappop(starts), frames.popleft()

    def _decode_raw(self, time_s: float) -> Iterator[Any]:
        try:
            target = int((time_s + self._start_s) / self._time_base)
            self._container.seek(target, stream=self._stream, backward=True)
        except av.FFmpegError:  # cannot seek: begin again
            self._container.close()
            self._container = self._open()
            self._stream = self._container.streams.video[0]
        packets, self._packets_s = self._container.demux(self._stream), list[float]()
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.FFmpegError):
                return
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                self._packets_s.append(float(stamp * self._time_base) - self._start_s)
            try:
                yield from packet.decode()
            except av.FFmpegError:
                continue  # one broken packet; what can be decoded after it counts


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def predict(
    bundle: Bundle,
    paths: Sequence[str | Path],
    *,
    budget: float | None = None,
    target_ms: float | None = None,
    batch: int = 1,
    readers: int = 2,
) -> Iterator[dict[str, Any]]:
    """Answer videos, in their order, while the next ones are decoded.

    Args:
        bundle: answers.
        paths: of the videos; one clip of each, from its middle.
        budget: as for `Bundle.point`.
        target_ms: as for `Bundle.point`.
        batch: clips that are answered together, sorted by route.
        readers: threads that decode.

    Yields:
        For each video a dict of "video" (its path), "class" (name, or None where the bundle names none), "label" (the
        class's number), "probability" (softmax), "route" (0 is the cheapest), "macs" (share of the original's
        multiply-adds, router included), "ms" (time in the engine, of its batch divided by the clips in it), "read_ms"
        and "missing" (frames of the clip that the file does not have, or that are damaged; the picture before stands
        in); or of "video" and "error", if it cannot be read, or the engine fails.

    Raises:
        BundleError: PyAV is not installed, or a number is out of range.
    """
    if av is None:
        raise BundleError(NO_PYAV)
    if batch < 1 or readers < 1:
        raise BundleError(f"predict: batch={batch}, readers={readers}; at least 1 each.")
    bundle.point(budget, target_ms)  # what is wrong with them comes before any work
    limits = {"budget": budget, "target_ms": target_ms}
    ahead = 2 * batch + readers
    with ThreadPoolExecutor(readers) as pool:
        waiting: deque[tuple[str, Future[_Read]]] = deque()
        rest = iter(paths)
        try:
            while True:
                while len(waiting) < ahead and (path := next(rest, None)) is not None:
                    waiting.append((str(path), pool.submit(_timed_clip, bundle, path)))
                if not waiting:
                    return
                yield from _answers(bundle, [waiting.popleft() for _ in range(min(batch, len(waiting)))], limits)
        finally:
            for _, future in waiting:
                future.cancel()


_Read = tuple[Floats, int, float]
"""The clip, how many of its frames are missing, and the time that it took in ms."""


def _timed_clip(bundle: Bundle, path: str | Path) -> _Read:
    start = time.perf_counter()
    clip, num_missing = bundle.read_counted(path)
    return clip, num_missing, 1e3 * (time.perf_counter() - start)


def _answers(
    bundle: Bundle, batch: "list[tuple[str, Future[_Read]]]", limits: dict[str, float | None]
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"video": path} for path, _ in batch]
    read: list[tuple[dict[str, Any], Floats]] = []
    for line, (path, future) in zip(lines, batch, strict=True):
        try:
            clip, line["missing"], line["read_ms"] = future.result()
            read.append((line, clip))
        except BundleError as exc:
            line["error"] = str(exc)
        except Exception as exc:  # whatever a damaged file brings about in a decoder
            line["error"] = f"`{path}`: {type(exc).__name__}: {exc}"
    if not read:
        return lines
    start = time.perf_counter()
    try:
        scores, routes, costs = bundle.answer(np.concatenate([clip for _, clip in read]), **limits)
    except Exception as exc:  # an engine that runs out of memory, say: the other videos are still to be answered
        for line, _ in read:
            line["error"] = f"`{line['video']}`: {bundle.engine} failed ({type(exc).__name__}: {exc})"
        return lines
    ms = 1e3 * (time.perf_counter() - start) / len(read)
    labels, chances = scores.argmax(1), largest_softmax(scores)
    for n, (line, _) in enumerate(read):
        if not np.isfinite(scores[n]).all():
            line["error"] = f"`{line['video']}`: the network's answer is not finite"
            continue
        label = int(labels[n])
        name = bundle.classes[label] if label < len(bundle.classes) else None
        line |= {"class": name, "label": label, "probability": round(float(chances[n]), 6)}
        line |= {"route": int(routes[n]), "macs": round(float(costs[n]), 6), "ms": round(ms, 3)}
        line["read_ms"] = round(line["read_ms"], 3)
    return lines


def main(words: Sequence[str] | None = None) -> int:
    """`runtime.py BUNDLE VIDEO …`: a line of JSON per video on stdout, what went wrong on stderr.

    Returns:
        The exit code: 0; 2: the bundle or the command line is wrong; 4: videos that could not be answered were passed
        over.
    """
    parser = argparse.ArgumentParser(prog="runtime.py", description="Answer videos with an exported bundle.")
    parser.add_argument("bundle", help="folder of the bundle")
    parser.add_argument("videos", nargs="+", metavar="VIDEO")
    parser.add_argument("--budget", type=float, help="mean share of the original's multiply-adds, such as 0.6")
    parser.add_argument("--target-ms", type=float, metavar="MS", help="mean time per clip in the engine")
    parser.add_argument("--batch", type=int, default=1, help="clips that are answered together (default 1)")
    parser.add_argument("--threads", type=int, help="threads of the engine")
    given = parser.parse_args(words)
    if given.batch < 1 or (given.threads is not None and given.threads < 1):
        parser.error("--batch and --threads are at least 1")
    unread = 0
    try:
        bundle = Bundle(given.bundle, threads=given.threads, max_batch=given.batch)
        limits = {"budget": given.budget, "target_ms": given.target_ms}
        for line in predict(bundle, given.videos, **limits, batch=given.batch):
            print(json.dumps(line), flush=True)
            unread += "error" in line
    except BundleError as exc:
        print(f"runtime.py: {exc}", file=sys.stderr)
        return USER_ERROR
    if unread:
        print(f"runtime.py: {unread} of {len(given.videos)} videos could not be answered", file=sys.stderr)
    return SOME_UNREADABLE if unread else 0


if __name__ == "__main__":
    sys.exit(main())
