"""Generated scenes as real video files: a small task in which some clips need every frame and others few.

Four kinds of scene. *static*: nothing moves, the class is the shape of the object. *moving*: an object runs
in a circle, the class is the sense of rotation. *zooming*: the camera zooms and jumps back, the class is in
or out. *shaking*: the camera shakes, the class is slow or fast. The motion is about as fast as can be told:
in every second frame the two shaking classes look alike (0.125 and 0.375 cycles per frame share an alias),
in every fourth frame the others do too (half a turn per step has no sense). Shape, colours, texture and noise
are drawn alike for all classes, so that a single frame tells no more than the static classes need.

Left and right have a meaning here: train with `flip=False`.

Legend: T frames, H height, W width.
"""

import math
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vared2_fx.data.listing import VideoListing, list_videos
from vared2_fx.errors import DataError

Floats = NDArray[np.float32]

CLASSES = (
    "moving_anticlockwise",
    "moving_clockwise",
    "shaking_fast",
    "shaking_slow",
    "static_cross",
    "static_disc",
    "static_ring",
    "zooming_in",
    "zooming_out",
)
"""Names of the classes, in label order: the alphabet's, so that listing the folder gives the same."""

KINDS = ("static", "moving", "zooming", "shaking")
"""Kinds of scene, see `kind_of`."""

FPS = 16
"""Frames per second of the files."""

_SHAPES = ("cross", "disc", "ring")
_TURN_FRAMES = (7.0, 9.0)  # frames of one turn of the object, or of one pulse of the zoom
_SHAKES_PER_FRAME = {"slow": 0.125, "fast": 0.375}


def kind_of(class_name: str) -> str:
    """Give the kind of scene ("static", "moving", "zooming" or "shaking") of a class in `CLASSES`.

    Raises:
        DataError: there is no such class.
    """
    if class_name not in CLASSES:
        raise DataError(f"`{class_name}` is no generated scene. The classes are {', '.join(CLASSES)}.")
    return class_name.split("_")[0]


def generate_scenes(
    folder: str | Path, *, videos_per_class: int, seed: int, num_frames: int = 20, size: int = 72, hard: bool = False
) -> VideoListing:
    """Render scenes and encode them as H.264: `folder/<class>/<number>.mp4`.

    Args:
        folder: where to; made if missing, and empty.
        videos_per_class: videos of each of the nine classes (about 15 ms each to make).
        seed: settles the pictures. Take different ones for training and validation.
        num_frames: T, at `FPS` frames per second.
        size: height and width in pixels; even, as H.264 wants it.
        hard: more noise, and smaller motions of the camera; what the demo's network was trained on.

    Returns:
        The listing of the files, labels in the order of `CLASSES`.

    Raises:
        DataError: the folder is not empty, or a number is out of range.
    """
    folder = Path(folder)
    if videos_per_class < 1 or num_frames < 1 or size < 32 or size % 2:
        raise DataError(
            f"generate_scenes: videos_per_class={videos_per_class}, num_frames={num_frames}, size={size}: "
            "at least one video of one frame, and an even size of 32 or more."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"generate_scenes: `{folder}` is not an empty folder. Delete it, or choose another.")
    for class_name in CLASSES:
        (folder / class_name).mkdir(parents=True)

    def make(class_name: str, i: int) -> None:
        rng = np.random.default_rng([seed, zlib.crc32(class_name.encode()), i])
        frames = render_scene(class_name, rng, num_frames=num_frames, size=size, hard=hard)
        _encode(folder / class_name / f"{i:04}.mp4", frames)

    with ThreadPoolExecutor() as pool:
        deque(pool.map(make, *zip(*product(CLASSES, range(videos_per_class)), strict=True)), maxlen=0)
    return list_videos(folder, classes=CLASSES)


def render_scene(
    class_name: str, rng: np.random.Generator, *, num_frames: int = 20, size: int = 72, hard: bool = False
) -> NDArray[np.uint8]:
    """Render one scene.

    Args:
        class_name: one of `CLASSES`.
        rng: draws everything that the class leaves open.
        num_frames: T.
        size: H and W, in pixels.
        hard: more noise, and smaller motions of the camera.

    Returns:
        (T, H, W, 3) uint8 RGB.

    Raises:
        DataError: there is no such class.
    """
    kind = kind_of(class_name)
    motion = _Motion.of(class_name, rng, num_frames=num_frames, size=size, hard=hard)
    shape = class_name.split("_")[1] if kind == "static" else str(rng.choice(_SHAPES))
    centred = np.arange(size, dtype=np.float32) - (size - 1) / 2
    zoom = motion.zoom[:, None, None]
    world_y = centred[None, :, None] / zoom + motion.camera[:, 0, None, None]  # (T, H, W) by broadcasting
    world_x = centred[None, None, :] / zoom + motion.camera[:, 1, None, None]
    world_y, world_x = np.broadcast_arrays(world_y, world_x)
    background = _texture(world_y, world_x, rng, size=size)
    mask = _mask(shape, world_y, world_x, motion.thing, rng)[..., None]
    picture = background * (1 - mask) + _brighter(background, rng) * mask
    noise = rng.standard_normal(picture.shape, np.float32) * rng.uniform(2, 20 if hard else 8)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Motion:
    """Where things are in each frame, in pixels from the centre of the scene, (y, x)."""

    camera: Floats
    """(T, 2): what the middle of the picture looks at."""
    thing: Floats
    """(T, 2): the middle of the object."""
    zoom: Floats
    """(T,): magnification."""

    @classmethod
    def of(
        cls, class_name: str, rng: np.random.Generator, *, num_frames: int, size: int, hard: bool = False
    ) -> "_Motion":
        kind, which = class_name.split("_")
        time = np.arange(num_frames) + rng.uniform(0, 100)
        turns = time / rng.uniform(*_TURN_FRAMES)
        camera, zoom = np.zeros((num_frames, 2)), np.ones(num_frames)
        thing = np.tile(rng.uniform(-0.22, 0.22, 2) * size, (num_frames, 1))
        if kind == "moving":
            angle = 2 * np.pi * (turns if which == "clockwise" else -turns)  # y points down
            radius = rng.uniform(0.02, 0.16) * size
            thing = thing * 0.5 + radius * np.stack([np.sin(angle), np.cos(angle)], axis=1)
        elif kind == "zooming":
            zoom = np.exp(rng.uniform(0.04 if hard else 0.1, 0.3) * ((turns if which == "in" else -turns) % 1.0))
        elif kind == "shaking":
            direction = rng.uniform(0, 2 * np.pi)
            cycles = time * _SHAKES_PER_FRAME[which] * rng.uniform(0.94, 1.06)
            sway = rng.uniform(0.005 if hard else 0.015, 0.04) * size * np.sin(2 * np.pi * cycles)
            camera = sway[:, None] * np.array([np.sin(direction), np.cos(direction)])
        return cls(*(a.astype(np.float32) for a in (camera, thing, zoom)))


def _texture(y: Floats, x: Floats, rng: np.random.Generator, *, size: int) -> Floats:
    """Paint the background at the given points: (T, H, W) each -> (T, H, W, 3) in 0...255."""
    pattern = np.zeros(y.shape, np.float32)
    for _ in range(int(rng.integers(1, 5))):  # one wave: stripes; several: clouds
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        per_pixel = 2 * np.pi * rng.uniform(1.0, 8.0) / size
        wave_y, wave_x = per_pixel * math.sin(angle), per_pixel * math.cos(angle)
        pattern += np.sin(wave_y * y + wave_x * x + float(phase))
    if rng.random() < 0.3:
        pattern = np.sign(pattern)
    weight = 0.5 + 0.5 * np.tanh(pattern)[..., None]
    first = rng.uniform(20, 140, 3).astype(np.float32)
    second = np.clip(first + rng.uniform(-55, 55, 3).astype(np.float32), 0, 255)
    return np.asarray(first * (1 - weight) + second * weight)


def _mask(shape: str, y: Floats, x: Floats, middle: Floats, rng: np.random.Generator) -> Floats:
    """Cover of the object at the given points, 0...1 with an edge one pixel wide; (T, H, W)."""
    radius, angle = rng.uniform(7.5, 11.0), rng.uniform(0, 2 * math.pi)  # all shapes have the disc's area
    y, x = y - middle[:, 0, None, None], x - middle[:, 1, None, None]
    if shape == "cross":
        along, across = 1.19 * radius, 1.19 / 3 * radius  # half the length and the width of an arm
        sin, cos = math.sin(angle), math.cos(angle)
        u, v = np.abs(cos * x + sin * y), np.abs(cos * y - sin * x)
        outside = np.maximum(np.maximum(u, v) - along, np.minimum(u, v) - across)
    elif shape == "ring":
        outside = np.abs(np.hypot(y, x) - radius) - radius / 4  # from 3/4 to 5/4 of the radius
    else:
        outside = np.hypot(y, x) - radius
    return np.asarray(np.clip(0.5 - outside, 0.0, 1.0))


def _brighter(background: Floats, rng: np.random.Generator) -> Floats:
    """Draw a colour brighter than the background's mean, by 40 to 100 grey levels per channel."""
    return np.asarray(background.mean(axis=(0, 1, 2)) + rng.uniform(40, 100, 3).astype(np.float32))


def _encode(path: Path, frames: NDArray[np.uint8]) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(FPS))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # quicker for videos as small as these
        # without looking ahead, whose result varies from run to run: the same scene gives the same file
        stream.options = {"crf": "20", "preset": "veryfast", "x264-params": "rc-lookahead=0:mbtree=0"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
