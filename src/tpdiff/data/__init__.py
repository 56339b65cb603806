"""Video files in, clips out: readers and writers, captioned folders, an endless stream of clips, ready-made
sets.
"""

from .check import FolderReport, check_folder
from .clips import ClipDataset, collate
from .digits import render_digits
from .doom import record_doom
from .errors import DataError, VideoError
from .folder import BadFile, Entry, FolderScan, check_share, scan
from .frames import frames_to_uint8, resize_frames, to_float, to_uint8
from .recipe import MadeSet
from .shards import ShardDataset
from .stream import StreamSampler, stream_indices
from .video import VideoInfo, probe, read_clip, read_video
from .writing import write_video

__all__ = [
    "BadFile",
    "ClipDataset",
    "DataError",
    "Entry",
    "FolderReport",
    "FolderScan",
    "MadeSet",
    "ShardDataset",
    "StreamSampler",
    "VideoError",
    "VideoInfo",
    "check_folder",
    "check_share",
    "collate",
    "frames_to_uint8",
    "probe",
    "read_clip",
    "read_video",
    "record_doom",
    "render_digits",
    "resize_frames",
    "scan",
    "stream_indices",
    "to_float",
    "to_uint8",
    "write_video",
]
