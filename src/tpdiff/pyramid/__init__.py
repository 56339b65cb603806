"""The mathematics of pyramidal diffusion: schedules, stages, targets, jumps, alignment, spectra.

Torch, SciPy and PyWavelets only.
"""

from tpdiff.pyramid.alignment import align, align_noise
from tpdiff.pyramid.geometry import check_axis, check_video_size
from tpdiff.pyramid.noise import randn
from tpdiff.pyramid.positions import positions
from tpdiff.pyramid.schedule import (
    FlowMatchingSchedule,
    Level,
    Schedule,
    VariancePreservingSchedule,
    schedule_from_config,
)
from tpdiff.pyramid.spectral import boundaries, power_lost, spectral_pyramid
from tpdiff.pyramid.spectrum import Spectrum, measure_spectrum
from tpdiff.pyramid.stages import Pyramid, Stage
from tpdiff.pyramid.targets import (
    PREDICTION_TYPES,
    StagePair,
    check_prediction_type,
    prediction_target,
    sample_and_noise,
)
from tpdiff.pyramid.told import as_told

__all__ = [
    "PREDICTION_TYPES",
    "FlowMatchingSchedule",
    "Level",
    "Pyramid",
    "Schedule",
    "Spectrum",
    "Stage",
    "StagePair",
    "VariancePreservingSchedule",
    "align",
    "align_noise",
    "as_told",
    "boundaries",
    "check_axis",
    "check_prediction_type",
    "check_video_size",
    "measure_spectrum",
    "positions",
    "power_lost",
    "prediction_target",
    "randn",
    "sample_and_noise",
    "schedule_from_config",
    "spectral_pyramid",
]
