from pathlib import Path

import pytest

from vared2_fx.data import VideoListing, list_unlabelled, list_videos, read_classes
from vared2_fx.errors import DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


def labels(listing: VideoListing) -> dict[str, str]:
    return {Path(path).name: listing.classes[label] for path, label in listing.videos}


def test_folder_per_class(tmp_path):
    touch(tmp_path, "run/b.MP4", "run/a.gif", "jump/c.webm", "jump/notes.txt", "jump/._c.mp4", ".git/x.mp4")
    listing = list_videos(tmp_path)
    assert listing.classes == ("jump", "run")
    assert listing.videos == (
        (str(tmp_path / "jump/c.webm"), 0),
        (str(tmp_path / "run/a.gif"), 1),
        (str(tmp_path / "run/b.MP4"), 1),
    )
    assert len(listing) == 3


@pytest.mark.parametrize("as_file", [False, True])
def test_given_classes_settle_the_labels(tmp_path, as_file):
    touch(tmp_path / "videos", "run/b.mp4", "jump/c.mp4")
    classes = ["run", "sit", "jump"]
    if as_file:
        (tmp_path / "names.txt").write_text("run\n\n sit\njump\n")
        classes = tmp_path / "names.txt"
    listing = list_videos(tmp_path / "videos", classes=classes)
    assert listing.classes == ("run", "sit", "jump")
    assert listing.videos == (
        (str(tmp_path / "videos/run/b.mp4"), 0),
        (str(tmp_path / "videos/jump/c.mp4"), 2),
    )


@pytest.mark.parametrize("header", ["", "path,label\n", "Video, Class\n"])
def test_csv_of_names(tmp_path, header):
    path = csv_file(tmp_path, header + 'a.mp4,run\n\n"sub/b, c.mp4", jump\n/data/d.mp4,run\n')
    listing = list_videos(path)
    assert listing.classes == ("jump", "run")
    assert listing.videos == (
        (str(tmp_path / "a.mp4"), 1),
        (str(tmp_path / "sub/b, c.mp4"), 0),
        ("/data/d.mp4", 1),
    )


def test_csv_of_integers(tmp_path):
    listing = list_videos(csv_file(tmp_path, "a.mp4,2\nb.mp4,0\n"))
    assert listing.classes == ("0", "1", "2")
    assert labels(listing) == {"a.mp4": "2", "b.mp4": "0"}


def test_csv_mixes_names_and_indices_when_classes_are_given(tmp_path):
    listing = list_videos(csv_file(tmp_path, "a.mp4,1\nb.mp4,run\n"), classes=["run", "jump"])
    assert labels(listing) == {"a.mp4": "jump", "b.mp4": "run"}


@pytest.mark.parametrize("header", ["", "path label\n"])
def test_a_space_between_path_and_label(tmp_path, header):
    path = csv_file(tmp_path, header + "a.mp4 2\nsub/b c.mp4 0\n")
    assert labels(list_videos(path)) == {"a.mp4": "2", "b c.mp4": "0"}
    assert [Path(file).name for file, _ in list_unlabelled(path).videos] == ["a.mp4", "b c.mp4"]


def test_unlabelled_names_may_have_spaces(tmp_path):
    listing = list_unlabelled(csv_file(tmp_path, "my a.mp4\nb 2\n"))
    assert [Path(file).name for file, _ in listing.videos] == ["my a.mp4", "b 2"]


KINETICS = "label,youtube_id,time_start,time_end,split\n"


def test_the_csv_of_kinetics(tmp_path):
    touch(tmp_path, "-3B32lodo2M_000059_000069.mp4", "0wR5jVB-WPk.mp4")
    rows = "abseiling,-3B32lodo2M,59,69,train\nzumba,0wR5jVB-WPk,417,427,train\nzumba,gone,1,11,train\n"
    path = csv_file(tmp_path, KINETICS + rows)
    listing = list_videos(path)
    assert listing.classes == ("abseiling", "zumba")
    names = ["-3B32lodo2M_000059_000069.mp4", "0wR5jVB-WPk.mp4", "gone_000001_000011.mp4"]
    assert [Path(file).name for file, _ in listing.videos] == names
    assert [label for _, label in listing.videos] == [0, 1, 1]
    assert [Path(file).name for file, _ in list_unlabelled(path).videos] == names


def test_the_test_split_of_kinetics_has_no_labels(tmp_path):
    path = csv_file(tmp_path, "youtube_id,time_start,time_end,split\nab,1,11,test\n")
    assert [Path(file).name for file, _ in list_unlabelled(path).videos] == ["ab_000001_000011.mp4"]
    with pytest.raises(DataError, match=r"no column `label`.*Take another split"):
        list_videos(path)


def test_a_csv_with_byte_order_mark(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_text("path,label\na.mp4,run\n", encoding="utf-8-sig")
    assert labels(list_videos(path)) == {"a.mp4": "run"}


def test_a_listing_passes_through(tmp_path):
    listing = VideoListing(videos=(("a.mp4", 0),), classes=("run",))
    assert list_videos(listing) is listing
    with pytest.raises(DataError, match=r"has the classes `run`, but .* says `jump`"):
        list_videos(listing, classes=["jump"])


def test_class_names_of_kinetics(real_clip_folder):
    names = read_classes(real_clip_folder / "label_map.txt")
    assert len(names) == 400
    assert "playing cricket" in names


@pytest.mark.parametrize(
    ("files", "classes", "message"),
    [
        (["run/a.mp4", "jump/a.txt"], None, "Class `jump` is empty.*remove the folder"),
        (["a.mp4", "b.mp4"], None, "its 2 videos lie in no class folder.*one folder per class"),
        (["a.txt"], None, "it has no folders"),
        (["train/run/a.mp4"], None, "did you mean .*train` as the root"),
        (["run/a.mp4", "jump/a.mp4"], ["run"], "jump` is not one of the 1 classes `run`.*Add it"),
        (["run/a.mp4"], ["run", "run"], "`run` is named more than once"),
        (["run/a.mp4"], [], "no class names"),
    ],
)
def test_what_is_wrong_with_a_folder(tmp_path, files, classes, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        list_videos(touch(tmp_path, *files), classes=classes)


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("", None, "lists no videos"),
        ("path,label\n", None, "lists no videos"),
        ("path,label\na.mp4,run\nb.mp4\n", None, "line 3: expected `path,label`, found 1 columns"),
        ("a.mp4,run,3\n", None, "line 1: expected .* double quotes"),
        ("a.mp4,\n", None, "line 1: expected"),
        ("a.mp4,run\nb.mp4,hop\n", ["run"], "line 2: unknown label `hop`.*indices 0 to 0"),
        ("a.mp4,1\n", ["run"], "line 1: unknown label `1`"),
        ("a.mp4,-1\n", ["run"], "line 1: unknown label `-1`"),
        ("a.mp4 run\nb.mp4\n", None, "line 2: expected `path,label`, found 1 columns"),
        ("label,youtube_id,time_start,time_end,split\n", None, "lists no videos"),
        ("label,youtube_id,time_start,time_end\nrun,ab,soon,2\n", None, "line 2: .* times in whole seconds"),
        ("label,youtube_id,time_start,time_end\nrun,ab,1\n", None, "line 2: .* times in whole seconds"),
    ],
)
def test_what_is_wrong_with_a_csv(tmp_path, text, classes, message):
    with pytest.raises(DataError, match=message):
        list_videos(csv_file(tmp_path, text), classes=classes)


def test_what_is_wrong_with_the_source(tmp_path):
    with pytest.raises(DataError, match="nothing_here` does not exist"):
        list_videos(tmp_path / "nothing_here")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match=r"bytes.csv` is not UTF-8 text"):
        list_videos(tmp_path / "bytes.csv")
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        read_classes(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("\n")
    with pytest.raises(DataError, match=r"names.txt` is empty"):
        read_classes(tmp_path / "names.txt")


def test_without_classes(tmp_path):
    touch(tmp_path, "c.mp4", "a/b.MP4", "a/deep/x.webm", "a/notes.txt")
    listing = list_unlabelled(tmp_path)
    assert listing.classes == ()
    assert [Path(path).name for path, _ in listing.videos] == ["b.MP4", "x.webm", "c.mp4"]
    listing = list_unlabelled(csv_file(tmp_path, "path,label\nc.mp4,9\n\na/b.MP4\n"))
    assert [path for path, _ in listing.videos] == [str(tmp_path / "c.mp4"), str(tmp_path / "a/b.MP4")]
    (tmp_path / "none").mkdir()
    for source, message in (("none", "no videos"), ("nix", "does not exist")):
        with pytest.raises(DataError, match=message):
            list_unlabelled(tmp_path / source)
    with pytest.raises(DataError, match="lists no videos"):
        list_unlabelled(csv_file(tmp_path, "path\n"))


def test_a_class_map_in_json(tmp_path, write_video):
    path = tmp_path / "classnames.json"
    path.write_text('{"\\"b c\\"": 1, "a": 0}')  # quotes as in Kinetics' own file
    assert read_classes(path) == ("a", "b c")
    (tmp_path / "list.csv").write_text(f"{write_video()},b c\n")
    listing = list_videos(tmp_path / "list.csv", classes=path)
    assert listing.videos[0][1] == 1
    assert listing.classes == ("a", "b c")


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not JSON"), ("[]", "holds no map"), ('{"a": 0, "b": 2}', "not 0 to 1"), ('{"a": "x"}', "not 0 to 0")],
)
def test_broken_class_maps_are_refused(tmp_path, text, says):
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(DataError, match=says):
        read_classes(tmp_path / "map.json")
