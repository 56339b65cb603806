"""A model that several commands are called on."""

import pytest
import torch

from tpdiff.models.video_dit import VideoDiT
from tpdiff.pyramid import FlowMatchingSchedule, Pyramid
from tpdiff.sampling.pipeline import PyramidPipeline


@pytest.fixture(scope="module")
def untold(tmp_path_factory):
    """A model of random weights that is told no captions."""
    folder = tmp_path_factory.mktemp("untold")
    torch.manual_seed(0)
    network = VideoDiT(patch_size=(1, 8, 8), hidden_size=24, num_layers=1, num_attention_heads=2)
    stages = Pyramid(FlowMatchingSchedule(), [(1, 1, 1), (2, 1, 1)]).config()
    PyramidPipeline(network, pyramid=stages, default_size=(8, 16, 16), fps=8).save_pretrained(folder)
    return folder
