"""Our own networks."""

from tpdiff.models.memory import keep_freed_memory
from tpdiff.models.video_dit import VideoDiT

__all__ = ["VideoDiT", "keep_freed_memory"]
