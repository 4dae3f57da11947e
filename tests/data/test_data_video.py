import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from made_videos import encode, steps
from pytorchvideo.data.encoded_video import EncodedVideo

from vared2_fx.data import ClipConfig, VideoFile
from vared2_fx.errors import DataError


def levels(frames: torch.Tensor) -> list[int]:
    """Which frame of `steps` each one is."""
    return [round(frame.float().mean().item() / 10) for frame in frames]


def test_the_frame_on_screen(write_video):
    with VideoFile(write_video(num_frames=20)) as video:
        assert video.duration_s == pytest.approx(2.0)
        assert video.fps == 10
        frames, num_missing = video.frames_at([0.0, 0.1, 0.15, 0.99, 1.0, 1.9])
    assert frames.shape == (6, 3, 24, 32)
    assert frames.dtype == torch.uint8
    assert levels(frames) == [0, 1, 1, 9, 10, 19]
    assert num_missing == 0


def test_any_order_of_requests(write_video):
    with VideoFile(write_video(num_frames=20)) as video:
        for start in (15, 3, 19, 0):
            assert levels(video.frames_at([start / 10])[0]) == [start]


def test_after_the_end_the_last_frame_stays(write_video):
    with VideoFile(write_video(num_frames=3)) as video:
        frames, num_missing = video.frames_at([0.1, 0.2, 0.3, 0.4])
    assert levels(frames) == [1, 2, 2, 2]
    assert num_missing == 2


def test_a_video_of_one_frame(write_video):
    with VideoFile(write_video(num_frames=1)) as video:
        frames, num_missing = video.frames_at([0.0, 0.1])
    assert levels(frames) == [0, 0]
    assert num_missing == 1


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.gif", "gif")])
def test_other_containers(write_video, name, codec):
    with VideoFile(write_video(name, num_frames=20, codec=codec)) as video:
        assert video.duration_s == pytest.approx(2.0, abs=0.11)
        assert levels(video.frames_at([0.5, 1.2, 1.7])[0]) == [5, 12, 17]


def test_odd_sizes(write_video):
    with VideoFile(write_video(height=25, width=33)) as video:
        assert video.frames_at([0.0])[0].shape == (1, 3, 25, 33)


def test_a_stream_without_a_length(tmp_path):
    """As a browser records it: the header says nothing about the end, the packets do."""
    path = tmp_path / "live.mkv"
    with av.open(str(path), "w", options={"live": "1"}, format="matroska") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for i in range(12):
            frame = np.full((24, 32, 3), 10 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.duration is None, "the file must lack what this test is about"
    with VideoFile(path) as video:
        assert video.duration_s == pytest.approx(1.2, abs=0.11)
        assert levels(video.frames_at([0.5, 1.1])[0]) == [5, 11]


_PEAK = """
import resource, sys
from vared2_fx.data import VideoFile
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
with VideoFile(sys.argv[1]) as video:
    video.frames_at([0.0, 3.0, 3.0, 7.0])
print(peak() - before)
"""


def test_a_clip_does_not_keep_the_video_in_memory(write_video):
    path = write_video(num_frames=75, height=720, width=1280)
    run = subprocess.run([sys.executable, "-c", _PEAK, path], check=True, capture_output=True, text=True, timeout=120)
    whole_mb = 75 * 720 * 1280 * 3 / 2**20  # as bytes; four times that as float32
    assert float(run.stdout) < 0.4 * whole_mb


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV writes no rotation")
@pytest.mark.parametrize(("degrees", "side"), [(90, "left"), (-90, "right"), (180, "bottom")])
def test_phone_videos_stand_upright(tmp_path, degrees, side):
    """Stored with a white top; turned counterclockwise by `degrees` to be shown."""
    path = tmp_path / "phone.mp4"
    picture = np.zeros((24, 32, 3), np.uint8)
    picture[:12] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv444p"
        stream.set_display_rotation(degrees)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with VideoFile(path) as video:
        (shown,), _ = video.frames_at([0.0])
    assert shown.shape == ((3, 24, 32) if degrees == 180 else (3, 32, 24))
    shown = shown.float().mean(0)
    halves = {"left": shown[:, :12], "right": shown[:, 12:], "bottom": shown[12:]}
    assert halves[side].mean() > 240
    assert shown.mean() == pytest.approx(127, abs=5)


@pytest.mark.parametrize("kind", ["text", "noise", "empty", "header_only"])
def test_not_a_video(tmp_path, write_video, kind):
    path = tmp_path / "bad.mp4"
    good = write_video().read_bytes()
    path.write_bytes(
        {
            "text": b"hello, I am a text file\n" * 50,
            "noise": np.random.default_rng(0).bytes(5000),
            "empty": b"",
            "header_only": good[: len(good) // 4],  # the index of an mp4 lies at its end
        }[kind]
    )
    with pytest.raises(DataError, match=r"bad.mp4` is not a readable video \(.+\). Play it"):
        VideoFile(path)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.mp4` does not exist"):
        VideoFile(tmp_path / "nowhere.mp4")


def test_sound_only(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="has no video stream"):
        VideoFile(path)


def test_a_broken_tail_keeps_the_beginning(tmp_path):
    grain = np.random.default_rng(0).integers(0, 5, (20, 64, 64, 3), dtype=np.uint8)
    path = encode(tmp_path / "cut.mkv", steps(20, 64, 64) + grain)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with VideoFile(path) as video:
        frames, num_missing = video.frames_at([i / 10 for i in range(20)])
    assert levels(frames)[:3] == [0, 1, 2]
    assert 0 < num_missing < 18


def test_nothing_decodes(write_video):
    path = write_video(num_frames=20, height=64, width=64)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    data[begin : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - begin)
    path.write_bytes(data)
    with VideoFile(path) as video, pytest.raises(DataError, match=r"no frame can be decoded between 0.00 s"):
        video.frames_at([0.0, 0.5])


_LIBRARY_DIFFERS = {
    "test.avi": "pytorchvideo sorts its frames by wrong time stamps",
    "demo_skeleton.mp4": "its frame rate varies",
}


def test_same_frames_as_pytorchvideo(real_clip: Path):
    if real_clip.name in _LIBRARY_DIFFERS:
        pytest.skip(_LIBRARY_DIFFERS[real_clip.name])
    with VideoFile(real_clip) as video:
        config = ClipConfig(frames=8, crop=32, short_side=32, sampling_rate=2, fps=video.fps)
        start_s = round(min(0.5, max(video.duration_s - config.duration_s, 0)) * video.fps) / video.fps
        ours, num_missing = video.frames_at(config.times_s(start_s))
    early = Fraction(1, 1000)
    span = max(Fraction(start_s) - early, 0), Fraction(start_s + config.duration_s) - early
    theirs = EncodedVideo.from_path(str(real_clip), decode_audio=False).get_clip(*span)["video"]
    assert theirs.shape[1] == 16
    theirs = theirs[:, torch.linspace(0, 15, 8).long()].transpose(0, 1)  # as uniform_temporal_subsample
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=0)
    assert num_missing == 0


def test_avi_frames_come_in_the_order_of_the_decoder(real_clip_folder: Path):
    path = real_clip_folder / "test.avi"
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with VideoFile(path) as video:
        ours, _ = video.frames_at([(i + 1) / 25 for i in range(60)])
    expected = torch.from_numpy(np.stack(decoded[:60])).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
