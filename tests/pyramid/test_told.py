"""What a network is told of the time: by the noise level, or by arc length over stages that overlap (MATH 7)."""

from itertools import pairwise

import pytest
import torch
from pyramid_reference import BOTH, FLOW, SCHEDULES, SPACE, TIME, VP

from tpdiff.pyramid import Pyramid, as_told
from tpdiff.pyramid.told import check_policy

PYRAMIDS = [
    pytest.param(TIME, None, id="T"),
    pytest.param(SPACE, None, id="HW"),
    pytest.param(BOTH, (0.2, 0.7), id="THW-other-ends"),
    pytest.param(((1, 1, 1), (1, 1, 1)), None, id="no-overlap"),
]


def walked(pyramid, k):
    """Times of stage k from its start to its end, evenly."""
    return pyramid.times(torch.linspace(1, 0, 11, dtype=torch.float64), k)


@pytest.mark.parametrize(("factors", "ends"), PYRAMIDS)
def test_arc_length_falls_evenly_from_one_to_zero_over_all_stages(factors, ends):
    pyramid = Pyramid(FLOW, factors, ends=ends)
    order = range(len(pyramid) - 1, -1, -1)
    told = [as_told(walked(pyramid, k), pyramid, k, "pyramid_flow") for k in order]
    assert told[0][0].item() == pytest.approx(1, abs=1e-15) and told[-1][-1].item() == 0
    for before, after in pairwise(told):
        assert after[0].item() == pytest.approx(before[-1].item(), abs=1e-15)
    slopes = torch.cat([one.diff() / walked(pyramid, k).diff() for one, k in zip(told, order, strict=True)])
    torch.testing.assert_close(slopes, slopes[:1].expand_as(slopes), rtol=1e-9, atol=0)
    assert all((one.diff() < 0).all() for one in told)


def test_golden_values():
    """MATH 3's starts: 0.414214 and 0.738796; so the stages are 0.414214, 0.405463 and 0.333333 long."""
    pyramid = Pyramid(FLOW, TIME)
    starts = [as_told(walked(pyramid, k)[0], pyramid, k, "pyramid_flow").item() for k in range(3)]
    assert starts == pytest.approx([0.414214 / 1.153010, 0.819677 / 1.153010, 1], abs=1e-6)


def test_levels_where_stages_overlap_are_told_apart():
    pyramid, t = Pyramid(FLOW, TIME), torch.tensor([0.68, 0.7, 0.73])
    for k, other in ((2, 1), (1, 2)):
        assert torch.equal(as_told(t, pyramid, k), as_told(t, pyramid, other))
    coarse, fine = (as_told(t, pyramid, k, "pyramid_flow") for k in (2, 1))
    assert (coarse.min() - fine.max()).item() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_one_stage_the_times_told_are_native(schedule, dtype):
    pyramid, t = Pyramid(schedule), torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    check_policy("pyramid_flow", pyramid)
    told = as_told(t, pyramid, 0, "pyramid_flow")
    assert told.dtype == dtype and torch.equal(told, t)


def test_refusals():
    with pytest.raises(ValueError, match="unknown timestep_policy 'arc'; known: native, pyramid_flow"):
        check_policy("arc", Pyramid(FLOW, TIME))
    with pytest.raises(ValueError, match=r"belong to flow matching; this schedule is variance_preserving; .*'native'"):
        check_policy("pyramid_flow", Pyramid(VP, TIME))
    check_policy("native", Pyramid(VP, TIME))
