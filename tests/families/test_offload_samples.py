"""Samples of a run whose encoders wait on the CPU: each part is on the device while it works, and no longer."""

import pytest
from test_tuning import parts, trained
from tiny import find_case

ENCODES = [("text_encoder", "comes"), ("text_encoder", "works"), ("text_encoder", "goes")]
DECODES = [("vae", "comes"), ("vae", "works"), ("vae", "goes")]


def watched(pipe, networks):
    """What the parts of a pipeline do from now on, in order: (name, "comes"), (name, "works") and (name, "goes"); and
    which parts are on a GPU whenever a network works.
    """
    events, beside, here = [], [], set()

    def moves(name, part, move):
        def to(*args, **kwargs):
            events.append((name, "goes" if name in here else "comes"))
            here.symmetric_difference_update({name})
            return move(*args, **kwargs)

        part.to = to

    def works(name, *_):
        if name in networks:
            name = "network"
            beside.append({one for one, part in parts(pipe).items() if next(part.parameters()).is_cuda})
        if not events or events[-1] != (name, "works"):
            events.append((name, "works"))

    for name, part in parts(pipe).items():
        if name not in networks:
            moves(name, part, part.to)
        for layer in list(part.modules())[1:]:
            layer.register_forward_pre_hook(lambda layer, _, name=name: works(name))
    return events, beside


@pytest.mark.parametrize("name", ["ltx", "animatediff", "wan-experts"])
def test_each_part_visits_for_its_own_work(name, tuning, tmp_path):
    case = find_case(name)
    pipeline = trained(tuning(case, "train.steps=1", offload=True), tmp_path / "run").pipeline()
    events, beside = watched(pipeline.pipe, case.networks)
    pipeline("a", num_inference_steps=[1, 1, 1], output_type="pt", guidance_scale=3.0)
    assert events == [*ENCODES, ("network", "works"), *DECODES]
    assert pipeline.device.type != "cuda" or {name for seen in beside for name in seen} == {*case.networks}


def test_a_call_that_fails_leaves_all_where_it_was(tuning, tmp_path):
    case = find_case("ltx")
    pipeline = trained(tuning(case, "train.steps=1", offload=True), tmp_path / "run").pipeline()
    events, _ = watched(pipeline.pipe, case.networks)

    def fail(*_):
        raise RuntimeError("no memory left")

    handle = list(pipeline.pipe.text_encoder.modules())[-1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no memory left"):
        pipeline("a", num_inference_steps=[1, 1, 1], output_type="pt")
    assert events == ENCODES
    handle.remove()
    events, _ = watched(pipeline.pipe, case.networks)
    pipeline("a", num_inference_steps=[1, 1, 1], output_type="pt")
    assert events == [*ENCODES, ("network", "works"), *DECODES]
