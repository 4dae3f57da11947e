"""Frames of an encoded video at given times, without holding more of it than those frames."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vared2_fx.errors import DataError
from vared2_fx.runtime import Video


class VideoFile(Video):
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

    error = DataError

    def frames_at(self, times_s: Sequence[float]) -> tuple[Tensor, int]:
        """Decode the picture that is on screen at each time.

        Args:
            times_s: ascending, in seconds from the beginning of the video. After the end, and where the
                decoder fails, the last picture before stays on screen.

        Returns:
            (T, 3, H, W) uint8 RGB, upright as the file says (phones store a rotation), and for how many of the T times
            there is no picture: after the end of the last frame, and where frames are damaged.

        Raises:
            DataError: there is none for any of them.
        """
        pictures, num_missing = self.pictures_at(times_s)
        return torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2), num_missing  # turned ones have negative strides
