import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_videos import encode, steps
from torch.utils.data import DataLoader

from vared2_fx.data import ClipConfig, VideoDataset, clip_transform, collate_clips, read_clip
from vared2_fx.errors import DataError


def levels(clip: torch.Tensor) -> list[int]:
    """Which frame of `steps` each frame of a clip (3, T, H, W) is."""
    return [round(255 * frame.mean().item() / 10) for frame in clip.unbind(1)]


def test_times_of_a_clip(clip_config):
    assert clip_config.duration_s == pytest.approx(0.8)
    assert clip_config.times_s(1.0) == pytest.approx([1.0 + i / 10 for i in range(8)])
    sparse = replace(clip_config, frames=4, sampling_rate=3)  # 4 of 12 frames, the first and last included
    assert sparse.times_s(0.0) == pytest.approx([0.0, 0.3, 0.7, 1.1])


def test_config_from_a_spec(clip_config):
    fields = {name: getattr(clip_config, name) for name in ClipConfig.__slots__}
    assert ClipConfig.from_spec(SimpleNamespace(name="net", num_classes=3, **fields)) == clip_config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 40}, "crop=40 does not fit into short_side=20. Set short_side to 40"),
        ({"frames": 0}, "frames=0, but it must be above 0"),
        ({"std": (1, 0, 1)}, "std above 0"),
        ({"mean": (1, 1)}, "three numbers each"),
    ],
)
def test_impossible_configs(clip_config, change, message):
    with pytest.raises(DataError, match=message):
        replace(clip_config, **change)


def test_one_clip_is_the_middle_of_the_video(write_video, clip_config):
    clip = read_clip(write_video(num_frames=20), clip_config)
    assert clip.shape == (1, 3, 8, 16, 16)
    assert clip.dtype == torch.float32
    assert levels(clip[0]) == list(range(6, 14))


def test_values_are_normalised(write_video, clip_config):
    config = replace(clip_config, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    path = write_video(num_frames=20)
    plain, normal = read_clip(path, clip_config), read_clip(path, config)
    expected = (plain - torch.tensor(config.mean).view(3, 1, 1, 1)) / torch.tensor(config.std).view(3, 1, 1, 1)
    torch.testing.assert_close(normal, expected)
    assert plain.min() > 0
    assert plain.max() < 1


def test_motion_keeps_its_speed_at_another_frame_rate(tmp_path, clip_config):
    slow = read_clip(encode(tmp_path / "10.mp4", steps(20), fps=10), clip_config)
    fast = read_clip(encode(tmp_path / "20.mp4", steps(20).repeat(2, axis=0), fps=20), clip_config)
    assert levels(fast[0]) == levels(slow[0])


def test_the_centre_is_seen(tmp_path, clip_config):
    """A wide frame, black at its sides: scaling keeps its shape and cropping takes the middle."""
    frames = np.zeros((8, 40, 80, 3), np.uint8)
    frames[:, :, 20:60] = 200
    clip = read_clip(encode(tmp_path / "wide.mp4", frames), clip_config)
    assert clip.min() > 0.7


def test_clips_spread_evenly(write_video, clip_config):
    path = write_video(num_frames=20)
    dataset = VideoDataset(
        list_of(path), replace(clip_config, frames=4), clips_per_video=2
    )  # starts at 4 and 12 of 0...16 possible ones
    assert [levels(dataset[i]["video"])[0] for i in range(len(dataset))] == [4, 12]
    assert [dataset[i]["clip_index"] for i in range(2)] == [0, 1]


def list_of(*paths: Path):
    from vared2_fx.data import VideoListing

    return VideoListing(videos=tuple((str(p), 0) for p in paths), classes=("one",))


def test_short_videos_are_filled_up_and_counted(write_video, clip_config):
    dataset = VideoDataset(list_of(write_video("5.mp4", 5), write_video("8.mp4", 8)), clip_config)
    assert levels(dataset[0]["video"]) == [0, 1, 2, 3, 4, 4, 4, 4]
    assert dataset[0]["num_missing"] == 3
    assert dataset[1]["num_missing"] == 0


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("height", "width"), [(25, 33), (17, 90), (90, 17), (6, 8)])
def test_every_size_of_frame(write_video, clip_config, training, height, width):
    dataset = VideoDataset(list_of(write_video(height=height, width=width)), clip_config, training=training)
    assert dataset[0]["video"].shape == (3, 8, 16, 16)


def test_training_varies_and_a_seed_settles_it(tmp_path, clip_config):
    noise = np.random.default_rng(0).integers(0, 255, (30, 24, 40, 3), dtype=np.uint8)
    dataset = VideoDataset(list_of(encode(tmp_path / "a.mp4", noise)), clip_config, training=True)
    state, torch_state = random.getstate(), torch.get_rng_state()
    clips = [dataset[0, seed]["video"] for seed in range(8)]
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert len({clip.sum().item() for clip in clips}) == 8
    torch.testing.assert_close(dataset[0, 3]["video"], clips[3], rtol=0, atol=0)
    torch.manual_seed(5)
    unseeded = dataset[0]["video"], dataset[0]["video"]
    assert not torch.equal(*unseeded)
    torch.manual_seed(5)
    torch.testing.assert_close(dataset[0]["video"], unseeded[0], rtol=0, atol=0)


@pytest.mark.parametrize("flip", [True, False])
def test_flip(flip):
    config = ClipConfig(frames=1, crop=8, short_side=8)
    picture = torch.arange(8, dtype=torch.uint8).expand(1, 3, 8, 8)
    transform = clip_transform(config, training=True, flip=flip)
    torch.manual_seed(0)
    firsts = {transform(picture)[0, 0, 0, 0].item() for _ in range(20)}
    assert len(firsts) == 1 + flip


def test_a_bad_video_gives_no_clip_but_a_reason(tmp_path, write_video, clip_config):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    dataset = VideoDataset(list_of(bad, tmp_path / "gone.mp4", write_video()), clip_config)
    assert dataset[0]["video"] is None
    assert "bad.mp4` is not a readable video" in dataset[0]["error"]
    assert "gone.mp4` does not exist" in dataset[1]["error"]
    assert dataset[2]["video"] is not None
    with pytest.raises(DataError, match="not a readable video"):
        read_clip(bad, clip_config)


def test_clips_per_video_is_checked(write_video, clip_config):
    with pytest.raises(DataError, match="clips_per_video=0: 1 or more"):
        VideoDataset(list_of(write_video()), clip_config, clips_per_video=0)
    with pytest.raises(DataError, match="in training leave it at 1"):
        VideoDataset(list_of(write_video()), clip_config, clips_per_video=2, training=True)


def test_works_in_a_plain_data_loader(video_folder, clip_config):
    dataset = VideoDataset(video_folder, clip_config, training=True)
    loader = DataLoader(
        dataset, batch_size=4, shuffle=True, collate_fn=lambda items: collate_clips(items, config=clip_config)
    )
    assert sorted(torch.cat([batch["label"] for batch in loader]).tolist()) == [0, 0, 0, 1, 1, 1]


def test_real_videos(real_clip):
    config = ClipConfig(frames=8, crop=112, short_side=128, sampling_rate=4)
    clip = read_clip(real_clip, config)
    assert clip.shape == (1, 3, 8, 112, 112)
    assert clip.isfinite().all()
    assert clip.std() > 0.1
    training = VideoDataset(list_of(real_clip), config, training=True)[0, 1]
    assert training["video"].shape == (3, 8, 112, 112)


@pytest.mark.parametrize("tall", [False, True])
def test_crops_lie_along_the_longer_side(tmp_path, clip_config, tall):
    frames = np.zeros((8, 40, 120, 3), np.uint8)
    frames[:, :, :40], frames[:, :, 80:] = 100, 200
    frames = frames.transpose(0, 2, 1, 3) if tall else frames
    listing = list_of(encode(tmp_path / "long.mp4", frames))
    dataset = VideoDataset(listing, clip_config, clips_per_video=2, crops_per_clip=3)
    assert len(dataset) == 6
    items = [dataset[i] for i in range(6)]
    assert [(item["clip_index"], item["crop_index"]) for item in items] == [(c, k) for c in (0, 1) for k in (0, 1, 2)]
    assert [round(item["video"].mean().item(), 1) for item in items[:3]] == [0.4, 0.0, 0.8]
    alone = VideoDataset(listing, clip_config, clips_per_video=2)
    torch.testing.assert_close(items[4]["video"], alone[1]["video"], rtol=0, atol=0)  # the middle crop is the centre


@pytest.mark.parametrize("numbers", [{"crops_per_clip": 0}, {"crops_per_clip": 2, "training": True}])
def test_impossible_crops_are_refused(write_video, clip_config, numbers):
    with pytest.raises(DataError, match="crops_per_clip"):
        VideoDataset(list_of(write_video()), clip_config, **numbers)
