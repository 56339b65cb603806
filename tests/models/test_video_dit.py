"""VideoDiT: what it computes, learns, keeps and runs under."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tpdiff.models import VideoDiT
from tpdiff.models.embeddings import patchify

TINY = dict(in_channels=2, patch_size=(1, 2, 2), hidden_size=24, num_layers=2, num_attention_heads=2)
CONDITIONS = dict(text_dim=5, num_classes=3, num_stages=3, absolute_positions=True)


def network(*, perturbed: bool = True, **options: object) -> VideoDiT:
    """A tiny network; ``perturbed``: moved away from its silent start."""
    torch.manual_seed(0)
    model = VideoDiT(**{**TINY, **options})
    if perturbed:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def arguments(batch: int = 2, size: tuple[int, int, int] = (3, 4, 6), *, conditions: bool = False) -> dict:
    """Random arguments of a forward pass."""
    generator = torch.Generator().manual_seed(1)
    inputs: dict = {
        "hidden_states": torch.randn(batch, 2, *size, generator=generator),
        "timestep": torch.rand(batch, generator=generator),
        "strides": (2, 1, 1),
    }
    if conditions:
        inputs["encoder_hidden_states"] = torch.randn(batch, 4, 5, generator=generator)
        inputs["encoder_attention_mask"] = torch.arange(4) < torch.tensor([[4], [2], [0], [1]])[:batch]
        inputs["class_labels"] = torch.arange(batch) % 4
        inputs["stage"] = 1
    return inputs


def sample(model: VideoDiT, **inputs: object) -> Tensor:
    return model(**inputs).sample


def gradients(model: VideoDiT, inputs: dict) -> dict[str, Tensor]:
    model.zero_grad()
    sample(model, **inputs).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_an_untrained_network_returns_zeros() -> None:
    model = network(perturbed=False, **CONDITIONS)
    assert not sample(model, **arguments(conditions=True)).any()


def test_an_untrained_block_is_the_identity_and_text_is_silent() -> None:
    model = network(perturbed=False, **CONDITIONS)
    tokens = torch.randn(2, 18, 24)
    rotary = model.rope.table((3, 2, 3), (1.0, 1.0, 1.0), tokens.device, tokens.dtype)
    text, mask = model.text_embed(torch.randn(2, 4, 5), None)
    torch.testing.assert_close(model.blocks[0](tokens, torch.randn(2, 24), rotary, text, mask), tokens)


@pytest.mark.parametrize("size", [(1, 2, 2), (3, 4, 6), (8, 2, 10), (5, 6, 2)])
@pytest.mark.parametrize("out_channels", [None, 5])
def test_the_output_has_the_size_of_the_input(size: tuple[int, int, int], out_channels: int | None) -> None:
    model = network(out_channels=out_channels)
    out = sample(model, **arguments(size=size))
    assert out.shape == (2, out_channels or 2, *size)
    assert out.std() > 0


def test_a_temporal_patch_and_a_tuple() -> None:
    model = network(patch_size=(2, 1, 2))
    inputs = arguments(size=(4, 3, 6))
    (out,) = model(**inputs, return_dict=False)
    assert out.shape == (2, 2, 4, 3, 6)
    assert torch.equal(out, sample(model, **inputs))


def test_a_patch_goes_out_where_it_came_in() -> None:
    """With silent blocks and heads, an identity projection hands every patch back in place."""
    model = network(perturbed=False, hidden_size=24, num_layers=0)
    inputs = arguments(size=(3, 4, 6))
    seen = []
    model.final_projection.register_forward_hook(lambda _, __, out: seen[0])
    model.patch_embed.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    torch.testing.assert_close(sample(model, **inputs), inputs["hidden_states"])


def test_gradient_reaches_every_parameter() -> None:
    model = network(**CONDITIONS)
    grads = gradients(model, arguments(batch=4, conditions=True))
    assert set(grads) == {name for name, _ in model.named_parameters()}
    assert all(grad.any() for grad in grads.values())


def test_only_the_output_learns_at_first() -> None:
    grads = gradients(network(perturbed=False), arguments())
    assert not any(grad.any() for grad in grads.values()), "square loss of a zero output"
    model = network(perturbed=False)
    sample(model, **arguments()).sum().backward()
    assert model.final_projection.weight.grad.any() and not model.patch_embed.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_checkpointing_changes_nothing(dtype: torch.dtype) -> None:
    model, inputs = network(**CONDITIONS).train(), arguments(conditions=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        plain = gradients(model, inputs)
        model.enable_gradient_checkpointing()
        calls = []
        handle = model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
        checkpointed = gradients(model, inputs)
        handle.remove()
    assert len(calls) == 2, "the block runs again in the backward pass"
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


@pytest.mark.parametrize(
    "options",
    [{"causal_time": True}, {"stage_projections": True}, {"patch_size": (2, 2, 2), "temporal_overlap": 1}],
    ids=lambda options: " ".join(options),
)
def test_round_trip_through_a_folder_is_exact(options: dict, tmp_path: Path) -> None:
    model, inputs = network(**CONDITIONS, **options), arguments(size=(4, 4, 6), conditions=True)
    model.save_pretrained(tmp_path)
    loaded = VideoDiT.from_pretrained(tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    for name, value in model.config.items():
        if not name.startswith("_"):
            assert loaded.config[name] == (list(value) if isinstance(value, tuple) else value), name
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert torch.equal(sample(model, **inputs), sample(loaded, **inputs))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model, inputs = network(**CONDITIONS), arguments(batch=4, conditions=True)
    together = sample(model, **inputs)
    for i in range(4):
        alone = {k: v[i : i + 1] if isinstance(v, Tensor) else v for k, v in inputs.items()}
        torch.testing.assert_close(sample(model, **alone), together[i : i + 1])


def test_padding_of_the_text_does_not_matter_and_text_does() -> None:
    model, inputs = network(**CONDITIONS), arguments(conditions=True)
    expected = sample(model, **inputs)
    text, mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
    inputs["encoder_hidden_states"] = text.where(mask[..., None], 1e3 * torch.randn_like(text))
    torch.testing.assert_close(sample(model, **inputs), expected)
    inputs["encoder_hidden_states"] = torch.cat((text, text), 1)
    inputs["encoder_attention_mask"] = torch.cat((mask, torch.zeros_like(mask)), 1)
    torch.testing.assert_close(sample(model, **inputs), expected)
    inputs["encoder_attention_mask"] = None
    assert not torch.allclose(sample(model, **inputs), expected)


def test_without_a_mask_all_text_is_attended_to() -> None:
    model, inputs = network(**CONDITIONS), arguments(conditions=True)
    inputs["encoder_attention_mask"] = torch.ones(2, 4, dtype=torch.bool)
    masked = sample(model, **inputs)
    torch.testing.assert_close(sample(model, **{**inputs, "encoder_attention_mask": None}), masked)


def test_an_empty_prompt_is_finite_and_ignores_the_text() -> None:
    model, inputs = network(**CONDITIONS), arguments(conditions=True)
    inputs["encoder_attention_mask"] = torch.zeros(2, 4, dtype=torch.bool)
    out = sample(model, **inputs)
    inputs["encoder_hidden_states"] = torch.randn(2, 4, 5)
    assert out.isfinite().all()
    torch.testing.assert_close(sample(model, **inputs), out)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("class_labels", [torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([3, 3])]),
        ("stage", [0, 1, 2]),
        ("strides", [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (1.5, 1, 1)]),
        ("timestep", [torch.zeros(2), torch.full((2,), 1e-3), torch.full((2,), 0.5), torch.ones(2)]),
    ],
)
def test_every_condition_matters(name: str, values: list) -> None:
    model, inputs = network(**CONDITIONS), arguments(conditions=True)
    outs = [sample(model, **{**inputs, name: value}) for value in values]
    for i, out in enumerate(outs):
        assert all(not torch.allclose(out, other, rtol=1e-4) for other in outs[:i])


def test_stages_project_tokens_by_layers_of_their_own() -> None:
    options, inputs = dict(num_stages=3, stage_projections=True), arguments()
    new, model = network(perturbed=False, **options), network(**options)
    assert all(torch.equal(layer, new.patch_embed.weight[0]) for layer in new.patch_embed.weight)
    assert new.patch_embed.weight[0].any() and not new.final_projection.weight.any()

    owned = gradients(model, {**inputs, "stage": 1})
    for name in ("patch_embed.weight", "patch_embed.bias", "final_projection.weight", "final_projection.bias"):
        assert [bool(part.any()) for part in owned[name]] == [False, True, False], name

    before = [sample(model, **inputs, stage=k) for k in range(3)]
    with torch.no_grad():
        model.final_projection.weight[2] += 1
        model.patch_embed.weight[2] += 1
    after = [sample(model, **inputs, stage=k) for k in range(3)]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False]


def test_layers_of_stages_that_are_alike_are_one_layer() -> None:
    shared, own = network(num_stages=3), network(num_stages=3, stage_projections=True)
    alike = {
        n: p.expand_as(own.get_parameter(n)) if p.shape != own.get_parameter(n).shape else p
        for n, p in shared.state_dict().items()
    }
    own.load_state_dict(alike)
    inputs = arguments()
    for k in range(3):
        torch.testing.assert_close(sample(own, **inputs, stage=k), sample(shared, **inputs, stage=k))


def test_the_token_stride_is_the_patch_times_the_stage_stride() -> None:
    seen = []
    model = network(patch_size=(1, 2, 3))
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    sample(model, **{**arguments(size=(3, 4, 6)), "strides": (2, 1, 4)})
    assert torch.equal(seen[0], model.rope.table((3, 2, 2), (2.0, 2.0, 12.0), torch.device("cpu"), torch.float32))


def test_positions_alone_tell_tokens_apart() -> None:
    """Permuting the frames of a video permutes the output only if positions are equal, which they are not."""
    model, inputs = network(), arguments()
    order = torch.tensor([2, 0, 1])
    shuffled = sample(model, **{**inputs, "hidden_states": inputs["hidden_states"][:, :, order]})
    assert not torch.allclose(shuffled, sample(model, **inputs)[:, :, order], rtol=1e-3)
    model.rope = type(model.rope)(model.rope.head_dim, theta=1.0)
    still = {**inputs, "strides": (1e-9, 1, 1)}  # all frames at (almost) one place
    shuffled = sample(model, **{**still, "hidden_states": inputs["hidden_states"][:, :, order]})
    torch.testing.assert_close(shuffled, sample(model, **still)[:, :, order])


def test_absolute_positions_tell_apart_tokens_that_see_the_same() -> None:
    inputs = arguments(batch=1) | {"hidden_states": torch.ones(1, 2, 3, 4, 6)}
    relative, absolute = (
        patchify(sample(network(absolute_positions=told), **inputs), (1, 2, 2))[0] for told in (False, True)
    )
    torch.testing.assert_close(relative, relative[:1].expand_as(relative))
    assert torch.pdist(absolute).min() > 1e-2


@pytest.mark.parametrize(("overlap", "seen"), [(0, [2, 3]), (1, [0, 1, 2, 3, 4])])
def test_a_frame_is_said_by_its_token_and_by_the_one_that_overlaps_it(overlap: int, seen: list[int]) -> None:
    """Frame 2 of 6, without attention between tokens: its own, of frames 1 to 4, and the one before, of 0 to 2."""
    model = network(num_layers=0, patch_size=(2, 2, 2), temporal_overlap=overlap)
    inputs = arguments(batch=1, size=(6, 2, 2))
    inputs["hidden_states"].requires_grad_()
    (gradient,) = torch.autograd.grad(sample(model, **inputs)[:, :, 2].sum(), inputs["hidden_states"])
    assert gradient.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist() == seen


def test_a_shift_of_all_positions_does_not_matter() -> None:
    """Stride 2 puts frame 0 at 1/2; only the differences count: extrapolated and full-size positions agree."""
    model = network()
    extrapolated = network(rope_modes=("extrapolate",) * 3, patch_size=(1, 2, 2))
    one_token = arguments(size=(4, 2, 2))
    torch.testing.assert_close(sample(extrapolated, **one_token), sample(model, **{**one_token, "strides": (1, 1, 1)}))


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_bfloat16_is_close_to_float32(how: str) -> None:
    model, inputs = network(**CONDITIONS), arguments(conditions=True)
    exact, exact_grads = sample(model, **inputs), gradients(model, inputs)
    if how == "weights":
        model = model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        out, grads = sample(model, **inputs), gradients(model, inputs)
    assert out.dtype == torch.float32, "the dtype of the input"
    assert (out - exact).norm() < 0.03 * exact.norm()
    for name, grad in grads.items():
        assert (grad - exact_grads[name]).norm() < 0.1 * exact_grads[name].norm() + 1e-3, name
    if how == "autocast":
        assert all(grad.dtype == torch.float32 for grad in grads.values())
    inputs["hidden_states"] = inputs["hidden_states"].bfloat16()
    assert how == "autocast" or sample(model, **inputs).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_as_one_graph(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    model, inputs = network(num_layers=1, **CONDITIONS), arguments(conditions=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        expected, grads = sample(model, **inputs), gradients(model, inputs)
        model.zero_grad()
        out = compiled(**inputs).sample
        out.square().sum().backward()
    tolerance = 1e-5 if dtype is torch.float32 else 0.05
    assert (out - expected).norm() < tolerance * expected.norm()
    for name, parameter in model.named_parameters():
        assert (parameter.grad - grads[name]).norm() < 2 * tolerance * grads[name].norm() + 1e-3, name


def test_inference_first_then_training() -> None:
    model, inputs = network(), arguments(size=(3, 8, 8))
    with torch.inference_mode():
        first = sample(model, **inputs)
    torch.testing.assert_close(sample(model, **inputs), first)
    gradients(model, inputs)


def test_learns_to_tell_time() -> None:
    """A few steps bring the loss of an easy task well down."""
    model = network(perturbed=False)
    inputs = arguments(batch=4)
    target = inputs["hidden_states"] * inputs["timestep"].view(-1, 1, 1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            out = sample(model, **inputs)
        loss = (out - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
