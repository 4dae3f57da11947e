import random
import shutil
from functools import partial

import pytest
import torch
from made_videos import encode, steps

from vared2_fx.data import EpochSampler, collate_clips, list_unlabelled, list_videos, make_loader
from vared2_fx.errors import DataError


@pytest.fixture
def folder_with_bad(video_folder):
    """Six good videos, one that cannot be opened, one that is too short."""
    (video_folder / "dark" / "text.mp4").write_text("no video")
    encode(video_folder / "light" / "short.mp4", steps(3))
    return video_folder


def test_unlabelled_batches(video_folder, clip_config):
    loader = make_loader(list_unlabelled(video_folder), clip_config, batch_size=4)
    batches = list(loader)
    assert [len(batch["video"]) for batch in batches] == [4, 2]
    assert not any("label" in batch for batch in batches)
    assert loader.log.num_read == 6


def test_evaluation_batches(video_folder, clip_config):
    loader = make_loader(video_folder, clip_config, batch_size=4)
    batches = list(loader)
    assert [tuple(batch["video"].shape) for batch in batches] == [(4, 3, 8, 16, 16), (2, 3, 8, 16, 16)]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [0, 0, 0, 1, 1, 1]
    assert batches[0]["label"].dtype == torch.int64
    assert [name for batch in batches for name in batch["video_name"]] == [path for path, _ in loader.listing.videos]
    again = list(loader)
    torch.testing.assert_close(again[0]["video"], batches[0]["video"], rtol=0, atol=0)


def test_several_clips_per_video(video_folder, clip_config):
    loader = make_loader(video_folder, clip_config, batch_size=12, clips_per_video=2)
    (batch,) = loader
    assert batch["video_index"].tolist() == [i // 2 for i in range(12)]
    assert batch["clip_index"].tolist() == [0, 1] * 6


def test_training_is_the_same_for_a_seed_and_any_number_of_workers(video_folder, clip_config):
    def epochs(*, seed: int, num_workers: int) -> list[torch.Tensor]:
        loader = make_loader(video_folder, clip_config, batch_size=2, training=True, seed=seed, num_workers=num_workers)
        torch.manual_seed(num_workers)  # nothing may depend on the state around
        random.seed(num_workers)
        return [torch.cat([batch["video"] for batch in loader]) for _ in range(2)]

    alone, workers, other = (epochs(seed=s, num_workers=n) for s, n in ((1, 0), (1, 2), (2, 0)))
    torch.testing.assert_close(workers, alone, rtol=0, atol=0)
    assert not torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[0], other[0])


def test_training_leaves_out_an_incomplete_batch_unless_it_is_the_only_one(video_folder, clip_config):
    make = partial(make_loader, video_folder, clip_config, training=True)
    assert [len(batch["label"]) for batch in make(batch_size=4)] == [4]
    assert [len(batch["label"]) for batch in make(batch_size=8)] == [6]


def test_epochs_can_be_resumed():
    sampler, resumed = EpochSampler(5, seed=3), EpochSampler(5, seed=3)
    epochs = [list(sampler) for _ in range(3)]
    assert epochs[1] != epochs[2]
    assert sorted(index for index, _ in epochs[1]) == list(range(5))
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]


def test_unreadable_videos_are_left_out_and_named(folder_with_bad, clip_config, caplog):
    loader = make_loader(folder_with_bad, clip_config, batch_size=4)
    assert len(loader.unreadable) == 1
    assert "7 of 8 videos can be read; 1 cannot" in caplog.text
    assert "text.mp4" in caplog.text
    assert sum(len(batch["label"]) for batch in loader) == 7
    assert (loader.log.num_read, loader.log.num_short, loader.log.num_failed) == (7, 1, 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_failures_in_an_epoch_are_dropped_and_counted(folder_with_bad, clip_config, num_workers):
    loader = make_loader(folder_with_bad, clip_config, batch_size=4, probe=False, num_workers=num_workers)
    first, second = loader
    assert (len(first["label"]), first["num_failed"], len(second["label"])) == (3, 1, 4)
    assert list(first["failed"]) == [str(folder_with_bad / "dark" / "text.mp4")]
    assert len(first["video_name"]) == len(first["video"]) == 3
    assert (loader.log.num_read, loader.log.num_short, loader.log.num_failed) == (7, 1, 1)
    text = str(loader.log)
    assert text.startswith("7 clips read, 1 of them short, 1 failed:")
    assert "text.mp4` is not a readable video" in text


def test_a_batch_without_a_single_clip_is_passed_over(folder_with_bad, clip_config):
    loader = make_loader(folder_with_bad, clip_config, batch_size=1, probe=False)
    assert [len(batch["label"]) for batch in loader] == [1] * 7
    assert loader.log.num_failed == 1


def test_a_video_that_vanishes_in_the_middle(video_folder, clip_config):
    loader = make_loader(video_folder, clip_config, batch_size=1)
    batches = iter(loader)
    next(batches)
    shutil.rmtree(video_folder / "light")
    assert [batch["label"].item() for batch in batches] == [0, 0]
    assert loader.log.num_failed == 3


def test_collating_nothing_keeps_the_form(clip_config):
    bad = {"video": None, "label": 0, "video_name": "a.mp4", "error": "why"}
    batch = collate_clips([bad, bad], config=clip_config)
    assert batch["video"].shape == (0, 3, 8, 16, 16)
    assert batch["label"].dtype == torch.int64
    assert (batch["num_failed"], batch["failed"], batch["video_name"]) == (2, {"a.mp4": "why"}, [])


def test_classes_of_the_training_set_rule_the_others(video_folder, clip_config):
    train = make_loader(video_folder, clip_config, batch_size=2, training=True)
    (video_folder / "dark").rename(video_folder / "murky")
    with pytest.raises(DataError, match="murky` is not one of the 2 classes"):
        make_loader(video_folder, clip_config, batch_size=2, classes=train.listing.classes)


def test_no_usable_video(tmp_path, clip_config):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"None of the videos can be used(?s:.*)a.mp4` is not a readable"):
        make_loader(tmp_path, clip_config, batch_size=2)
    assert len(list_videos(tmp_path)) == 1
