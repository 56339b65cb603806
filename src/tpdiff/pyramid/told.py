"""What a network is told of the time: a noise level's own, or arc length over the overlapping stages (MATH 7)."""

from torch import Tensor

from tpdiff.pyramid.schedule import FlowMatchingSchedule
from tpdiff.pyramid.stages import Pyramid

POLICIES = ("native", "pyramid_flow")


def check_policy(policy: str, pyramid: Pyramid) -> None:
    """Refuse a timestep policy that is none, or that these stages cannot have.

    Raises:
        ValueError: an unknown policy, or arc length over stages of another schedule than flow matching's.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown timestep_policy {policy!r}; known: {', '.join(POLICIES)}")
    schedule = pyramid.schedule.name
    if policy != "native" and len(pyramid) > 1 and schedule != FlowMatchingSchedule.name:
        raise ValueError(
            f"the times of timestep_policy={policy!r} belong to flow matching; this schedule is {schedule}; "
            "nearest: 'native'"
        )


def as_told(t: Tensor, pyramid: Pyramid, stage: int, policy: str = "native") -> Tensor:
    """What a network is told at times t in [0, 1] of stage k, any shape (MATH 7).

    "native" is t itself, which levels of two stages share where these overlap. "pyramid_flow" lays the stages end to
    end, each as long as it is in t, l_k = s_k - e_k, so that no two levels share one:

        t' = (l_0 + ... + l_{k-1} + t - e_k) / (l_0 + ... + l_{S-1})

    from 1 at the coarsest start to 0 at the finest end. With one stage both are t.
    """
    if policy == "native":
        return t
    lengths = [one.start - one.end for one in pyramid.stages]
    return (sum(lengths[:stage]) + (t - pyramid.stages[stage].end)) / sum(lengths)
