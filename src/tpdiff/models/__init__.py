"""Our own networks."""

from tpdiff.models.video_dit import VideoDiT

__all__ = ["VideoDiT"]
