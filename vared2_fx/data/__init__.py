"""Clips from real video files, and generated scenes to try things on."""

from vared2_fx.data.clips import ClipConfig, VideoDataset, clip_transform, read_clip
from vared2_fx.data.listing import VideoListing, list_unlabelled, list_videos, read_classes
from vared2_fx.data.loader import DecodeLog, EpochSampler, VideoLoader, collate_clips, make_loader
from vared2_fx.data.probe import ProbeResult, probe_videos
from vared2_fx.data.video import VideoFile

__all__ = [
    "ClipConfig",
    "DecodeLog",
    "EpochSampler",
    "ProbeResult",
    "VideoDataset",
    "VideoFile",
    "VideoListing",
    "VideoLoader",
    "clip_transform",
    "collate_clips",
    "list_unlabelled",
    "list_videos",
    "make_loader",
    "probe_videos",
    "read_classes",
    "read_clip",
]
