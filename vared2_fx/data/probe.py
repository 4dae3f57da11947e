"""Look at every video once, before an epoch stumbles over it."""

from dataclasses import dataclass, replace

from vared2_fx.data.listing import VideoListing
from vared2_fx.data.video import VideoFile
from vared2_fx.errors import DataError
from vared2_fx.progress import track


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeResult:
    """What `probe_videos` found."""

    usable: VideoListing
    """The listing without the unreadable videos; same classes."""

    unreadable: tuple[tuple[str, str], ...]
    """(path, reason) of each video that cannot be read."""

    def __str__(self) -> str:
        total = len(self.usable) + len(self.unreadable)
        head = f"{len(self.usable)} of {total} videos can be read"
        if not self.unreadable:
            return f"{head}."
        shown = [reason for _, reason in self.unreadable[:10]]
        rest = [f"... and {len(self.unreadable) - 10} more"] if len(self.unreadable) > 10 else []
        return "\n  ".join([f"{head}; {len(self.unreadable)} cannot:", *shown, *rest])


def probe_videos(listing: VideoListing, *, progress: bool = True) -> ProbeResult:
    """Open each video and decode its first frame (about 10 ms each at 256×256).

    Args:
        listing: the videos.
        progress: show a progress bar when it takes longer than two seconds.

    Returns:
        The usable videos, and the others with reasons. Damage after the first frame is not seen here: a clip
        that fails later is dropped and counted by the loader.

    Raises:
        DataError: not a single video can be read.
    """
    usable, unreadable = [], []
    for path, label in track(listing.videos, "Looking at the videos", enabled=progress):
        reason = _why_unreadable(path)
        if reason is None:
            usable.append((path, label))
        else:
            unreadable.append((path, reason))
    result = ProbeResult(usable=replace(listing, videos=tuple(usable)), unreadable=tuple(unreadable))
    if not usable:
        raise DataError(f"None of the videos can be used. {result}")
    return result


def _why_unreadable(path: str) -> str | None:
    try:
        with VideoFile(path) as video:
            video.frames_at([0.0])
    except DataError as error:
        return str(error)
    except Exception as error:  # whatever a damaged file brings about in a decoder
        return f"`{path}`: {type(error).__name__}: {error}"
    return None
