"""Mochi."""

from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel

from tiny.encoders import WIDTH, seeded, t5, tokenizer


def mochi() -> MochiPipeline:
    """From text; time runs from 0, noise, to 1."""
    seeded()
    vae = AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    ).eval()
    network = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=8,
    ).eval()
    return MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=vae,
        text_encoder=t5(),
        tokenizer=tokenizer(model_max_length=256),
        transformer=network,
    )
