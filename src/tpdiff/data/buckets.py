"""Buckets: the clip sizes of a cache, and the one that a video goes to.

A batch holds clips of one size, so that a set of videos of many sizes becomes clips of a few.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Bucket(NamedTuple):
    """A clip size: frames, and height and width in pixels; written 49x480x832."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Buckets:
    """How sizes are chosen, each from the size of one video alone.

    Attributes:
        choices: the sizes there are; None: of every video as much as `most` and `legal` let through.
        most: without choices, the most frames and, as a product, the largest picture.
        legal: without choices, the largest legal size within a size; None: there is none.
    """

    choices: tuple[Bucket, ...] | None
    most: Bucket
    legal: Callable[[Bucket], Bucket | None]

    def of(self, length: int, height: int, width: int) -> Bucket | None:
        """The bucket of a video of `length` frames of `height` × `width` pixels; None: it fills none.

        Of the choices it is the one with the most frames that the video fills, then with the nearest proportions,
        then of the nearest area. Without choices proportions are kept, and pictures are not enlarged.
        """
        if self.choices is None:
            scale = min(1.0, math.sqrt(self.most.height * self.most.width / (height * width)))
            size = Bucket(min(length, self.most.frames), round(height * scale), round(width * scale))
            return self.legal(size)
        filled = [bucket for bucket in self.choices if bucket.frames <= length]
        if not filled:
            return None

        def distance(bucket: Bucket) -> tuple[int, float, float]:
            tall, wide = math.log(bucket.height / height), math.log(bucket.width / width)
            return -bucket.frames, round(abs(tall - wide), 9), abs(tall + wide)

        return min(filled, key=distance)

    @property
    def pictures(self) -> bool:
        """Whether single pictures fill one."""
        if self.choices is None:
            return self.legal(Bucket(1, self.most.height, self.most.width)) is not None
        return any(bucket.frames == 1 for bucket in self.choices)
