"""Small real video files, encoded on the spot."""

from pathlib import Path

import av
import numpy as np


def encode(path: Path, frames: np.ndarray, *, fps: int = 10, codec: str = "libx264", crf: int = 10) -> Path:
    """Encode (T, H, W, 3) uint8; every 5th frame is a key frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = {"libx264": "yuv444p", "gif": "rgb8"}.get(codec, "yuv420p")  # 444: odd sizes too
        stream.options = {"crf": str(crf), "g": "5"} if codec == "libx264" else {}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def steps(num_frames: int, height: int = 24, width: int = 32) -> np.ndarray:
    """Grey frames, frame i at level 10 i: decoding tells which frame it was."""
    levels = (10 * np.arange(num_frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()
