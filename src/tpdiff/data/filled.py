"""What clips have that their videos have not: frames repeated, where these are slower, and pixels enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .clips import Geometry, Video

NEAR = 0.99  # of a rate: 23.976 frames a second are 24


def slow_videos(videos: Sequence[Video], geometry: Geometry) -> tuple[Path, ...]:
    """Those with fewer frames a second than the clips."""
    return tuple(v.entry.path for v in videos if geometry.fps is not None and v.info.fps < NEAR * geometry.fps)


def small_videos(videos: Sequence[Video], geometry: Geometry) -> tuple[Path, ...]:
    """Those with fewer pixels than the clips along an axis."""
    return tuple(v.entry.path for v in videos if v.info.height < geometry.height or v.info.width < geometry.width)


def filled_lines(videos: Sequence[Video], geometry: Geometry) -> list[str]:
    """A line for each kind, in words; none where every clip is all of its video's own."""
    lines = []
    if slow := slow_videos(videos, geometry):
        lines.append(
            f"{len(slow)} of {len(videos)} videos have fewer than {geometry.fps:g} frames a second, such as {slow[0]}: "
            "their frames are repeated"
        )
    if small := small_videos(videos, geometry):
        wanted = f"{geometry.height}x{geometry.width}"
        lines.append(
            f"{len(small)} of {len(videos)} videos are smaller than {wanted}, such as {small[0]}: they are enlarged"
        )
    return lines
