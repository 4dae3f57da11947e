"""Which videos there are, and what each one shows: a folder per class, or a list of paths and labels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vared2_fx.data.rows import labelled_rows, listed_files, read_text
from vared2_fx.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".gif", ".webm", ".mov")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoListing:
    """Videos with their labels. Nothing has been opened yet: see `probe_videos`."""

    videos: tuple[tuple[str, int], ...]
    """(path, label) of each video; the label is an index into `classes`."""

    classes: tuple[str, ...]
    """Names of the classes, in label order; none where nobody knows them."""

    def __len__(self) -> int:
        return len(self.videos)


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Read class names from a file.

    Of text: one per line, line n names label n, empty lines do not count. Of JSON (`.json`): a map from every class
    name to its label, as Kinetics comes with; quotes that its names carry are dropped.

    Raises:
        DataError: the file is missing, empty, not text, names a class twice, or its labels are not 0, 1, 2, …
    """
    if Path(path).suffix.lower() == ".json":
        return _class_map(Path(path))
    lines = read_text(Path(path), what="class names").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise DataError(f"class names: `{path}` is empty. Write one class name per line.")
    return _checked_classes(names, where=str(path))


def _class_map(path: Path) -> tuple[str, ...]:
    try:
        found = json.loads(read_text(path, what="class map"))
    except ValueError as error:
        raise DataError(f"class map: `{path}` is not JSON ({error}).") from error
    if not isinstance(found, dict) or not found:
        raise DataError(f'class map: `{path}` holds no map; write {{"class name": label, …}}.')
    labels = list(found.values())
    if sorted(map(str, labels)) != sorted(map(str, range(len(found)))):
        raise DataError(
            f"class map: the labels in `{path}` are not 0 to {len(found) - 1}, each once. Every output of the "
            "network has one name."
        )
    names = tuple(str(name).strip().strip("\"'") for name, _ in sorted(found.items(), key=lambda item: int(item[1])))
    return _checked_classes(names, where=str(path))


def list_videos(
    source: str | Path | VideoListing, *, classes: Sequence[str] | str | Path | None = None
) -> VideoListing:
    """List the videos of a data set.

    Args:
        source: a folder that holds one folder per class (`root/class_name/*.mp4`; also avi, mkv, gif, webm,
            mov), or a CSV file with rows `path,label`. In a CSV a header is optional, relative paths are
            taken from the folder of the CSV, and a label is a class name or its index. In a list without any
            comma a space stands between the two. Kinetics' own CSV (`label,youtube_id,time_start,time_end,split`)
            means `<youtube_id>_<start>_<end>.mp4`, times in six digits, or `<youtube_id>.mp4`, in its folder. A
            ready listing is returned as it is, after a check against `classes`.
        classes: names in label order, or a file for `read_classes`. Give the training set's here when
            listing another split, so that equal labels mean equal classes. By default: the sorted folder
            names, or the sorted labels of the CSV (for integer labels: "0" to the largest).

    Returns:
        The listing, sorted by class and file name for a folder, in the order of its rows for a CSV.

    Raises:
        DataError: naming the file, line or folder: it is missing, has no videos, a class is empty or
            unknown, a row is malformed, a class is named twice.
    """
    names = None
    if isinstance(classes, str | Path):
        names = read_classes(classes)
    elif classes is not None:
        names = _checked_classes(tuple(classes), where="classes")
    if isinstance(source, VideoListing):
        if names is not None and names != source.classes:
            raise DataError(
                f"The listing has the classes {_some(source.classes)}, but `classes` says {_some(names)}. "
                "List the videos again with list_videos(source, classes=...)."
            )
        return source
    path = Path(source)
    if path.is_dir():
        return _list_folder(path, names)
    if path.is_file():
        return _list_csv(path, names)
    raise DataError(
        f"`{path}` does not exist. Give a folder with one folder of videos per class, or a CSV with rows `path,label`."
    )


def list_unlabelled(source: str | Path) -> VideoListing:
    """List videos whose classes nobody knows: all in a folder and the folders inside, or of a CSV's first column.

    Returns:
        The listing, sorted by path for a folder; there are no classes, and every label is 0.

    Raises:
        DataError: the source is missing, or has no videos.
    """
    path = Path(source)
    if path.is_dir():
        folders = (path, *(inside for inside in path.rglob("*") if inside.is_dir()))
        files = [str(file) for folder in folders for file in _videos_in(folder)]
        if not files:
            raise DataError(f"`{path}`: no videos ({', '.join(VIDEO_SUFFIXES)}) in it, nor in the folders inside.")
        return VideoListing(videos=tuple((file, 0) for file in sorted(files)), classes=())
    if not path.is_file():
        raise DataError(f"`{path}` does not exist. Give a folder with videos, or a CSV whose first column names them.")
    return VideoListing(videos=tuple((str(path.parent / name), 0) for name in listed_files(path)), classes=())


def _list_folder(root: Path, classes: tuple[str, ...] | None) -> VideoListing:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        loose = _videos_in(root)
        hint = f"its {len(loose)} videos lie in no class folder" if loose else "it has no folders"
        raise DataError(f"`{root}`: {hint}. Expected one folder per class: {root}/<class name>/<video>.mp4.")
    found = classes or tuple(folder.name for folder in folders)
    label_of = {name: label for label, name in enumerate(found)}
    videos = []
    for folder in folders:
        if folder.name not in label_of:
            raise DataError(
                f"`{folder}` is not one of the {len(found)} classes {_some(found)}. Add it to the class "
                "names, or move the folder away."
            )
        files = _videos_in(folder)
        if not files:
            nested = any(p.is_dir() for p in folder.iterdir())
            hint = (
                f"It has folders of its own: did you mean `{folder}` as the root?"
                if nested
                else (f"Put videos ({', '.join(VIDEO_SUFFIXES)}) into it, or remove the folder.")
            )
            raise DataError(f"Class `{folder.name}` is empty: no videos in `{folder}`. {hint}")
        videos += [(str(file), label_of[folder.name]) for file in files]
    return VideoListing(videos=tuple(sorted(videos, key=lambda video: video[1])), classes=found)


def _videos_in(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file() and not p.name.startswith(".")
    )


def _list_csv(path: Path, classes: tuple[str, ...] | None) -> VideoListing:
    rows = labelled_rows(path)
    labels = [label for _, _, label in rows]
    if classes is None:
        if all(label.isdecimal() for label in labels):
            classes = tuple(str(i) for i in range(max(map(int, labels)) + 1))
        else:
            classes = tuple(sorted(set(labels)))
    label_of = {name: label for label, name in enumerate(classes)}
    videos = []
    for line, file, label in rows:
        index = label_of.get(label, int(label) if label.isdecimal() else len(classes))
        if index >= len(classes):
            raise DataError(
                f"`{path}`, line {line}: unknown label `{label}`. Known are {_some(classes)}, or their "
                f"indices 0 to {len(classes) - 1}. Mend the line, or add the class to the class names."
            )
        videos.append((str(path.parent / file), index))  # an absolute `file` stays what it is
    return VideoListing(videos=tuple(videos), classes=classes)


def _checked_classes(names: tuple[str, ...], *, where: str) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}: class {_some(tuple(twice))} is named more than once. Name each class once.")
    if not names:
        raise DataError(f"{where}: no class names. Give at least one.")
    return names


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:6])
    return f"{shown}, ..." if len(names) > 6 else shown
