from pathlib import Path

import av
import numpy as np
import pytest

from vared2_fx.data import ClipConfig, VideoFile, list_videos, make_loader, scenes
from vared2_fx.data.scenes import CLASSES, KINDS, generate_scenes, kind_of, render_scene
from vared2_fx.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    generate_scenes(path, videos_per_class=2, seed=7)
    return path


def quiet(class_name: str, seed: int = 0, **kwargs) -> np.ndarray:
    """Render the scene of a seed, smoothed against the noise: (T, H, W) floats."""
    frames = render_scene(class_name, np.random.default_rng(seed), **kwargs).astype(float).mean(axis=3)
    return sum(np.roll(frames, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9


def motion(frames: np.ndarray) -> float:
    return float(np.abs(np.diff(frames, axis=0)).mean())


def test_the_normal_listing_reads_them(folder):
    listing = list_videos(folder)
    assert listing.classes == CLASSES
    assert len(listing) == 2 * len(CLASSES)
    assert {kind_of(name) for name in listing.classes} == set(KINDS)


def test_they_are_h264_files(folder):
    with av.open(str(folder / "zooming_in" / "0000.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"
        assert (stream.width, stream.height, stream.frames) == (72, 72, 20)
        assert stream.average_rate == scenes.FPS


def test_decoding_gives_what_was_rendered(tmp_path, monkeypatch):
    rendered = {}  # by class: scenes are drawn in threads, in no order
    original = scenes.render_scene
    monkeypatch.setattr(
        scenes,
        "render_scene",
        lambda name, *args, **kwargs: rendered.setdefault(name, original(name, *args, **kwargs)),
    )
    listing = generate_scenes(tmp_path / "scenes", videos_per_class=1, seed=0)
    assert len(rendered) == len(listing.videos)
    for path, _ in listing.videos:
        expected = rendered[Path(path).parent.name]
        with VideoFile(path) as video:
            frames, num_missing = video.frames_at([i / scenes.FPS for i in range(20)])
        decoded = frames.permute(0, 2, 3, 1).numpy().astype(float)
        assert num_missing == 0
        # lossy, and colour at half resolution: but the picture is there, and in its place in time
        errors = [np.abs(decoded[5] - expected[t]).mean() for t in range(20)]
        assert errors[5] < 12
        if "static" not in path:
            assert errors[5] < min(errors[4], errors[6])


def test_a_seed_settles_the_pictures():
    for name in CLASSES:
        first, again, other = (render_scene(name, np.random.default_rng(seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()


def test_seeds_and_numbers_of_videos_in_files(tmp_path):
    one, more, other = (
        generate_scenes(tmp_path / name, videos_per_class=number, seed=seed)
        for name, number, seed in (("one", 1, 5), ("more", 2, 5), ("other", 1, 6))
    )
    first = Path(one.videos[0][0]).read_bytes()
    assert first == Path(more.videos[0][0]).read_bytes()
    assert first != Path(more.videos[1][0]).read_bytes()
    assert first != Path(other.videos[0][0]).read_bytes()


@pytest.mark.parametrize("seed", range(3))
def test_only_static_scenes_are_still(seed):
    moves = {name: np.mean([motion(quiet(name, 10 * seed + i)) for i in range(10)]) for name in CLASSES}
    still = max(value for name, value in moves.items() if kind_of(name) == "static")
    assert still < min(value for name, value in moves.items() if kind_of(name) != "static")


def test_fast_and_slow_shaking_look_alike_in_every_second_frame():
    """The alias that the scenes are built on: same seed, exact frequencies, no noise but that of the seed."""
    distances = {}
    for every in (1, 2):
        moves = {
            name: np.mean([motion(quiet(f"shaking_{name}", seed)[::every]) for seed in range(20)])
            for name in ("slow", "fast")
        }
        distances[every] = moves["fast"] / moves["slow"]
    assert distances[1] > 1.4
    assert 0.85 < distances[2] < 1.15


def test_zooming_in_is_zooming_out_backwards():
    """In grows slowly and jumps back: the largest change of a pulse is the jump, before or after the growth."""
    rng = np.random.default_rng(0)
    zoom = scenes._Motion.of("zooming_in", rng, num_frames=200, size=72).zoom
    rng = np.random.default_rng(0)
    out = scenes._Motion.of("zooming_out", rng, num_frames=200, size=72).zoom
    assert (np.diff(zoom) > 0).mean() > 0.8
    assert (np.diff(out) < 0).mean() > 0.8


def test_the_sense_of_rotation():
    for name, sign in (("moving_clockwise", 1), ("moving_anticlockwise", -1)):
        thing = scenes._Motion.of(name, np.random.default_rng(0), num_frames=200, size=72).thing
        (y, x) = (thing - thing.mean(axis=0)).T
        turn = x[:-1] * y[1:] - y[:-1] * x[1:]  # y points down: positive is clockwise on the screen
        assert (np.sign(turn) == sign).all()


@pytest.mark.parametrize("num_frames", [1, 7])
@pytest.mark.parametrize("size", [32, 96])
def test_other_sizes(num_frames, size):
    for name in CLASSES:
        frames = render_scene(name, np.random.default_rng(0), num_frames=num_frames, size=size)
        assert frames.shape == (num_frames, size, size, 3)
        assert frames.dtype == np.uint8
        assert frames.std() > 1


def test_batches_of_scenes(folder):
    config = ClipConfig(frames=16, crop=64, short_side=72, fps=scenes.FPS)
    loader = make_loader(folder, config, batch_size=6, training=True, flip=False)
    assert [tuple(batch["video"].shape) for batch in loader] == [(6, 3, 16, 64, 64)] * 3
    assert loader.log.num_short == 0


def test_errors(folder):
    with pytest.raises(DataError, match=r"`dancing` is no generated scene. The classes are moving_"):
        kind_of("dancing")
    with pytest.raises(DataError, match=r"is not an empty folder. Delete it"):
        generate_scenes(folder, videos_per_class=1, seed=0)
    for wrong in ({"videos_per_class": 0}, {"num_frames": 0}, {"size": 71}, {"size": 16}):
        with pytest.raises(DataError, match="at least one video of one frame, and an even size of 32"):
            generate_scenes(folder / "new", **{"videos_per_class": 1, "seed": 0, **wrong})
    assert not (folder / "new").exists()
