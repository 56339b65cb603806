"""Figures of clips: distances between sets over named features, and what single clips show."""

from tpdiff.metrics.distance import (
    Interval,
    frechet_distance,
    frechet_from_moments,
    frechet_interval,
    kernel_distance,
    moments,
    paired_bootstrap,
    paired_draws,
)
from tpdiff.metrics.features import FeatureSet, efficientnet_features, i3d_features, open_features, videomae_features
from tpdiff.metrics.projection import Projection, fit_projection
from tpdiff.metrics.reference import Reference

__all__ = [
    "FeatureSet",
    "Interval",
    "Projection",
    "Reference",
    "efficientnet_features",
    "fit_projection",
    "frechet_distance",
    "frechet_from_moments",
    "frechet_interval",
    "i3d_features",
    "kernel_distance",
    "moments",
    "open_features",
    "paired_bootstrap",
    "paired_draws",
    "videomae_features",
]
