"""PyramidScheduler: a diffusers scheduler around a diffusers scheduler."""

from tpdiff.schedulers.pyramid_scheduler import PyramidScheduler
from tpdiff.schedulers.wrapped import check_schedule, schedule_of

__all__ = ["PyramidScheduler", "check_schedule", "schedule_of"]
