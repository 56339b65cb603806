"""CogVideoX 2b, 5b and 1.5, from text and from a picture."""

from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)

from tiny.encoders import WIDTH, seeded, t5, tokenizer


def _vae(**options) -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        **options,
    ).eval()


def _network(channels: int = 4, **options) -> CogVideoXTransformer3DModel:
    settings = {"sample_width": 8, "sample_height": 8, "sample_frames": 17, "patch_size": 2}
    return CogVideoXTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=1,
        temporal_compression_ratio=4,
        max_text_seq_length=8,
        **(settings | options),
    ).eval()


def _noise(kind: type = CogVideoXDPMScheduler, snr_shift: float = 1.0):
    return kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=snr_shift,
        timestep_spacing="trailing",
    )


def _parts(scheduler) -> dict:
    return {"tokenizer": tokenizer(), "text_encoder": t5(), "scheduler": scheduler}


def cogvideox() -> CogVideoXPipeline:
    """2b: sums of sines as positions, DDIM."""
    seeded()
    return CogVideoXPipeline(**_parts(_noise(CogVideoXDDIMScheduler, 3.0)), vae=_vae(), transformer=_network())


def cogvideox_rotary() -> CogVideoXPipeline:
    """5b: rotary positions, its own stochastic solver."""
    seeded()
    network = _network(use_rotary_positional_embeddings=True)
    return CogVideoXPipeline(**_parts(_noise()), vae=_vae(), transformer=network)


def cogvideox_picture() -> CogVideoXImageToVideoPipeline:
    """5b from a picture: its latents in further channels; learned positions beside rotary ones."""
    seeded()
    network = _network(8, use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True)
    return CogVideoXImageToVideoPipeline(**_parts(_noise()), vae=_vae(), transformer=network)


def cogvideox_pairs() -> CogVideoXPipeline:
    """1.5: latent frames are patched in pairs."""
    seeded()
    network = _network(
        patch_size_t=2, sample_width=32, sample_height=32, patch_bias=False, use_rotary_positional_embeddings=True
    )
    return CogVideoXPipeline(**_parts(_noise()), vae=_vae(invert_scale_latents=True), transformer=network)


def cogvideox_pairs_picture() -> CogVideoXImageToVideoPipeline:
    """1.5 from a picture."""
    seeded()
    network = _network(
        8,
        patch_size_t=2,
        sample_width=32,
        sample_height=32,
        patch_bias=False,
        ofs_embed_dim=8,
        use_rotary_positional_embeddings=True,
    )
    return CogVideoXImageToVideoPipeline(**_parts(_noise()), vae=_vae(invert_scale_latents=True), transformer=network)
