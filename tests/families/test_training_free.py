"""Stages without training: boundaries from a spectrum, strides that are fractions, through stock pipelines."""

import numpy as np
import pytest
import torch
from recording import evaluations
from tiny import find_case

from tpdiff import apply_pyramid
from tpdiff.families import find_family
from tpdiff.pyramid import spectral_pyramid
from tpdiff.pyramid.spectrum import Spectrum
from tpdiff.schedulers import schedule_of

BANDS = np.arange(1, 25.0)


def falling(causal):
    """Power that falls along height and width as pictures' does, and faster along time."""
    space = 40 / (BANDS[:, None] ** 2 + BANDS[None] ** 2)
    power = space[None] / BANDS[:, None, None] ** 3
    return Spectrum(power, space if causal else None, (24, 24, 24), 1)


@pytest.mark.parametrize("name", ["wan", "animatediff"])
@pytest.mark.parametrize(
    ("factors", "side"),
    [([(1, 1, 1), (1, 1.5, 1.5)], 48), ([(1, 1, 1), (2, 1, 1)], 32), ([(1, 1, 1), (2, 1, 1), (2, 2, 2)], 64)],
    ids=["two thirds", "time", "both"],
)
def test_a_stock_pipeline_runs_through_spectral_stages(name, factors, side):
    case = find_case(name)
    pipe = case.stageable()
    frames, causal = (9, True) if name == "wan" else (8, False)
    pyramid = spectral_pyramid(falling(causal), schedule_of(pipe.scheduler), factors, 0.1)
    assert pyramid.causal_time is causal
    apply_pyramid(pipe, pyramid, [2] * len(factors))
    size = {"num_frames": frames, "height": side, "width": side}
    made = []
    for _ in range(2):
        with evaluations(case, pipe) as calls:
            made.append(case.run(pipe, **size))
    latent = find_family(pipe).latent_size(pipe, (frames, side, side))
    stages = [pyramid.stage_shape((1, 1, *latent), k)[2:] for k in reversed(range(len(factors)))]
    assert list(dict.fromkeys(call.size for call in calls)) == stages
    assert torch.equal(*made)
    assert made[0].isfinite().all()
