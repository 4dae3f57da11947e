from vared2_fx.data import list_videos, probe_videos


def test_all_good(video_folder):
    listing = list_videos(video_folder)
    result = probe_videos(listing)
    assert result.usable == listing
    assert str(result) == "6 of 6 videos can be read."


def test_the_bad_ones_are_named(video_folder):
    for i in range(12):
        (video_folder / "dark" / f"bad{i:02}.mp4").write_bytes(b"\0" * 100)
    result = probe_videos(list_videos(video_folder))
    assert len(result.usable) == 6
    assert result.usable.classes == ("dark", "light")
    assert [path.rsplit("/", 1)[1] for path, _ in result.unreadable] == [f"bad{i:02}.mp4" for i in range(12)]
    text = str(result)
    assert text.startswith("6 of 18 videos can be read; 12 cannot:")
    assert "bad09.mp4" in text
    assert "bad10.mp4" not in text
    assert text.endswith("... and 2 more")
