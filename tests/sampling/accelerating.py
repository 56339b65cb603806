"""Two tiny families under acceleration: how they are called, their stages by hand, and which blocks were computed."""

import sys
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel

from tpdiff import PyramidScheduler, apply_pyramid
from tpdiff.pyramid import Pyramid
from tpdiff.schedulers import schedule_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "families"))
from tiny.encoders import WIDTH, tokenizer, umt5

FACTORS = [(1, 1, 1), (2, 1, 1), (4, 2, 2)]
COUNTS = [5, 4, 6]
SIZES = [(9, 32, 32), (17, 64, 64), (33, 64, 64)]  # pixels, coarsest first
ARGS = {"prompt": "a red ball", "negative_prompt": "the dog", "max_sequence_length": 16, "output_type": "latent"}


def wan(**changes) -> WanPipeline:
    """Wan 2.1 with two blocks; `changes` to its components."""
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    noise = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    options = {"tokenizer": tokenizer(), "text_encoder": umt5(), "transformer": network, "vae": vae, "scheduler": noise}
    pipe = WanPipeline(**(options | changes))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cogvideox() -> CogVideoXPipeline:
    """CogVideoX-5b: text and video in one sequence, both guidance branches in one batch."""
    torch.manual_seed(0)
    network = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    text = T5EncoderModel(T5Config(vocab_size=32, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4)).eval()
    pipe = CogVideoXPipeline(tokenizer(), text, vae, network, CogVideoXDDIMScheduler(prediction_type="v_prediction"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


MAKE = {"Wan": wan, "CogVideoX": cogvideox}


def pyramid_of(pipe) -> Pyramid:
    return Pyramid(schedule_of(pipe.scheduler), FACTORS, causal_time=True)


def pyramidal(pipe):
    return apply_pyramid(pipe, pyramid_of(pipe), COUNTS)


def call(pipe, size=SIZES[-1], guidance=5.0, generator=None, **options):
    """Latents as the pipeline lays them out. generator: None makes one, False gives none."""
    generator = torch.Generator().manual_seed(3) if generator is None else generator or None
    sizes = dict(zip(("num_frames", "height", "width"), size, strict=True))
    return pipe(**{**ARGS, **sizes, "guidance_scale": guidance, "generator": generator, **options}).frames


def stages_by_hand(name, enable=None, guidance=5.0):
    """Plain calls of the stock pipeline, one a stage, and the scheduler's jumps between them.

    enable: (pipe, stage's place) -> freshly enables a cache, which is disabled after the stage.
    """
    pipe = MAKE[name]()
    pyramid = pyramid_of(pipe)
    scheduler = pipe.scheduler = PyramidScheduler(pipe.scheduler, pyramid, COUNTS)
    generator = torch.Generator().manual_seed(3)
    frames = {"Wan": 2, "CogVideoX": 1}[name]  # the axis of time
    latents = None
    for place, (count, size) in enumerate(zip(COUNTS, SIZES, strict=True)):
        scheduler.restrict(len(pyramid) - 1 - place, COUNTS)
        if enable is not None:
            enable(pipe, place)
        latents = call(pipe, size, guidance, generator, latents=latents, num_inference_steps=count)
        if enable is not None:
            pipe.transformer.disable_cache()
        if place < len(COUNTS) - 1:
            latents = scheduler.jump(latents.transpose(2, frames), generator).transpose(2, frames)
    return latents


class Computed:
    """For every evaluation of a pipeline's network, which parts of its blocks really ran."""

    def __init__(self, pipe):
        self.evaluations = []  # (shape of the latents, names)
        network = getattr(pipe.transformer, "_orig_mod", pipe.transformer)
        network.register_forward_pre_hook(self.begin, with_kwargs=True)
        blocks = network.blocks if hasattr(network, "blocks") else network.transformer_blocks
        self.all = set()
        for place, block in enumerate(blocks):
            after = block.ffn if hasattr(block, "ffn") else block.ff
            for part, module in (("attention", block.attn1.to_q), ("feed forward", after)):
                self.all.add(f"{place} {part}")
                module.register_forward_hook(lambda *_, name=f"{place} {part}": self.evaluations[-1][1].add(name))

    def begin(self, module, args, kwargs):
        self.evaluations.append((tuple(kwargs["hidden_states"].shape[1:]), set()))

    def by_stage(self):
        """Stage after stage, the names that ran in each evaluation."""
        shapes = list(dict.fromkeys(shape for shape, _ in self.evaluations))
        return [[names for shape, names in self.evaluations if shape == one] for one in shapes]
