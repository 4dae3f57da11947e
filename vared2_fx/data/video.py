"""Frames of an encoded video at given times, without holding more of it than those frames."""

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from vared2_fx.errors import DataError

_EARLY_S = 1e-3  # containers round times to as much as a millisecond: 2/30 s is stored as 0.067 in Matroska
_REORDER = 4  # frames whose time stamps are sorted again; MPEG-4 allows fewer frames of reordering than this


class VideoFile:
    """An open video file.

    Written beside `pytorchvideo.data.encoded_video.EncodedVideo` because that one turns every frame of the clip's time
    span into float32 (8 s of 1920x1080: 6 GB), decodes a Matroska file completely to open it, gives up a whole clip
    for one broken packet, leaves phone videos lying on their side, and sorts frames by the wrong time stamps that
    MPEG-4 in AVI carries. On sound files both give the same frames (`tests/data/test_data_video.py`).

    Args:
        path: the file.

    Raises:
        DataError: the file is missing, not a video, or has no video stream.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        if not Path(path).is_file():
            raise DataError(f"`{path}` does not exist. Check the path.")
        try:
            self._container = av.open(self.path)
        except (av.FFmpegError, OSError) as error:
            raise DataError(
                f"`{path}` is not a readable video ({_reason(error)}). Play it to see whether it is damaged."
            ) from error
        try:
            if not self._container.streams.video:
                raise DataError(f"`{path}` has no video stream. Give a file with pictures in it.")
            self._stream = self._container.streams.video[0]
            self._start_s = float((self._stream.start_time or 0) * self._time_base)
            self.duration_s = self._find_duration()
        except BaseException:
            self._container.close()
            raise

    @property
    def fps(self) -> float:
        """Mean frame rate, in frames per second; 25 where the file does not say."""
        return float(self._stream.average_rate or self._stream.guessed_rate or 25)

    def frames_at(self, times_s: Sequence[float]) -> tuple[Tensor, int]:
        """Decode the picture that is on screen at each time.

        Args:
            times_s: ascending, in seconds from the beginning of the video. After the end, and where the
                decoder fails, the last picture before stays on screen.

        Returns:
            (T, 3, H, W) uint8 RGB, upright as the file says (phones store a rotation), and how many of the T times lie
            after the end of the last decoded frame.

        Raises:
            DataError: nothing can be decoded there.
        """
        shown, end_s = self._shown_at(times_s, seek=True)
        if shown[0] is None and times_s[0] > 0:  # the seek went too far: decode from the beginning
            shown, end_s = self._shown_at(times_s, seek=False)
        first = next((frame for frame in shown if frame is not None), None)
        if first is None:
            raise DataError(
                f"`{self.path}`: no frame can be decoded between {times_s[0]:.2f} s and {times_s[-1]:.2f} s. "
                "Play it to see whether it is damaged."
            )
        to_rgb = VideoReformatter()  # shared: to set it up takes longer than to convert a small frame
        pictures: list[Tensor] = []
        for i, frame in enumerate(shown):
            if i and frame is shown[i - 1]:
                pictures.append(pictures[-1])
            else:  # one size for all: a stream may change its own half way
                rgb = to_rgb.reformat(frame or first, first.width, first.height, format="rgb24")
                pictures.append(torch.from_numpy(np.ascontiguousarray(rgb.to_ndarray())))
        num_missing = sum(time > end_s - _EARLY_S for time in times_s)
        upright = torch.rot90(torch.stack(pictures), round(first.rotation / 90), dims=(1, 2))
        return upright.permute(0, 3, 1, 2), num_missing

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> "VideoFile":
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
            return self._container.duration / av.time_base
        end = 0
        try:
            for packet in self._container.demux(self._stream):
                if packet.pts is not None:
                    end = max(end, packet.pts + (packet.duration or 0))
        except av.FFmpegError:
            pass  # a broken tail: the packets before it count
        return max(float(end * self._time_base) - self._start_s, 0.0)

    def _shown_at(self, times_s: Sequence[float], *, seek: bool) -> tuple[list[Any], float]:
        """Find the frame on screen at each time, None before the first; and when the last one ends, in s."""
        shown: list[Any] = [None] * len(times_s)
        end_s = -1.0
        next_time = 0
        last = None
        for start_s, frame in self._decode_from(times_s[0] if seek else 0.0):
            while next_time < len(times_s) and times_s[next_time] < start_s - _EARLY_S:
                shown[next_time] = last
                next_time += 1
            last = frame
            end_s = start_s + max(float((frame.duration or 0) * self._time_base), 1.0 / self.fps)
            if next_time == len(times_s):
                break
        shown[next_time:] = [last] * (len(times_s) - next_time)
        return shown, end_s

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
            self._container = av.open(self.path)
            self._stream = self._container.streams.video[0]
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.FFmpegError):
                return
            try:
                yield from packet.decode()
            except av.FFmpegError:
                continue  # one broken packet; what can be decoded after it counts


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
