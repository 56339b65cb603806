"""Several processes that share one video, and models that are elsewhere than they compute."""

import socket

import pytest
import torch
import torch.distributed as dist
from accelerating import COUNTS, MAKE, call, pyramidal
from diffusers import ContextParallelConfig, ParallelConfig
from torch import multiprocessing

from tpdiff import apply_pyramid

ROW = [(1, 1, 1), (2, 1, 1)]
ODD = (9, 48, 48)  # 3 latent frames of 3 x 3 tokens, and 2 of them: 27 and 18 tokens


def share(rank, port, results):
    """One of two processes that share a video, beside a run of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    if torch.accelerator.device_count() == 0:
        torch.accelerator.device_count = lambda: 1  # diffusers divides by it, also where the CPU is the device
    alone, shared = MAKE["Wan"](), MAKE["Wan"]()
    shared.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    lengths = []
    shared.transformer.blocks[0].attn1.to_q.register_forward_hook(
        lambda module, args, out: lengths.append(out.shape[1])
    )
    a, b = (call(pyramidal(pipe)) for pipe in (alone, shared))
    results[rank] = (float((a - b).abs().max()), lengths)
    dist.destroy_process_group()


def test_two_processes_make_what_one_makes():
    """Each has half of every stage's tokens: 12, 80 and 144."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(share, (port, results), nprocs=2)
        both = dict(results)
    for rank in (0, 1):
        difference, lengths = both[rank]
        assert difference <= 1e-5
        assert lengths == [tokens for tokens, steps in zip((6, 40, 72), COUNTS, strict=True) for _ in range(2 * steps)]


def parallel(pipe, **options):
    """As `enable_parallelism` records it, without other processes: what is checked comes before any work."""
    pipe.transformer._parallel_config = ParallelConfig(context_parallel_config=ContextParallelConfig(**options))
    ran = []
    pipe.transformer.register_forward_pre_hook(lambda *_: ran.append(1))
    pipe.text_encoder.register_forward_pre_hook(lambda *_: ran.append(1))
    return pipe, ran


@pytest.mark.parametrize("options", [{"ulysses_degree": 2}, {"ring_degree": 2}])
def test_tokens_that_do_not_divide_are_refused_before_any_work(options):
    pipe, ran = parallel(apply_pyramid(MAKE["Wan"](), ROW, (2, 2)), **options)
    message = r"stage 0 has 27 tokens \(3 × 3 × 3\), which 2 processes .*nearest: height 32 or width 32"
    with pytest.raises(ValueError, match=message):
        call(pipe, ODD)
    assert ran == []


def test_a_coarse_stage_is_checked_too():
    """144 and 80 tokens go into 16 parts, the coarsest stage's 12 do not."""
    pipe, ran = parallel(pyramidal(MAKE["Wan"]()), ulysses_degree=4, ring_degree=4)
    with pytest.raises(ValueError, match=r"stage 2 has 12 tokens \(3 × 2 × 2\), which 16 processes"):
        call(pipe)
    assert ran == []


def test_the_nearest_size_is_one_that_fits():
    pipe, _ = parallel(pyramidal(MAKE["Wan"]()), ulysses_degree=4, ring_degree=4)
    with pytest.raises(ValueError, match=r"nearest: (.*) or set ulysses_anything") as caught:
        call(pipe)
    found = str(caught.value).split("nearest: ")[1].split(";")[0]
    assert found == "num_frames 49 or height 256 or width 256"
    for size in ((49, 64, 64), (33, 256, 64), (33, 64, 256)):
        assert call(pipe, size).isfinite().all()


def test_parts_of_any_length_are_not_checked():
    pipe, ran = parallel(apply_pyramid(MAKE["Wan"](), ROW, (2, 2)), ulysses_degree=2, ulysses_anything=True)
    call(pipe, ODD)
    assert len(ran) > 0


def test_without_a_generator_processes_would_draw_different_jumps():
    pipe, ran = parallel(pyramidal(MAKE["Wan"]()), ulysses_degree=2)
    with pytest.raises(ValueError, match="give the call a generator, seeded alike"):
        call(pipe, generator=False)
    assert ran == []


def test_cogvideox_has_no_plan_for_context_parallelism():
    """The table says so; should diffusers make one, its cells are to be tested."""
    assert MAKE["CogVideoX"]().transformer._cp_plan is None


def test_group_offload_to_disk(tmp_path):
    pipe = MAKE["Wan"]()
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(
        onload_device=cpu,
        offload_device=cpu,
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(tmp_path),
    )
    assert torch.equal(call(pyramidal(pipe)), call(pyramidal(MAKE["Wan"]())))
    assert list(tmp_path.glob("*.safetensors"))


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
@pytest.mark.parametrize("family", MAKE)
def test_cpu_offload(family, way):
    plain = call(pyramidal(MAKE[family]().to("cuda")))
    pipe = MAKE[family]()
    getattr(pipe, way)()
    pyramidal(pipe)
    for _ in range(2):
        assert torch.allclose(call(pipe), plain, rtol=1e-4, atol=1e-4)
        assert all(p.device.type in ("cpu", "meta") for p in pipe.transformer.parameters())
