"""LTX from text and from a picture."""

from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)

from tiny.encoders import WIDTH, seeded, t5, tokenizer


def _parts() -> dict:
    seeded()
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        patch_size=4,
    ).eval()
    network = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=WIDTH,
    ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    return {
        "vae": vae,
        "transformer": network,
        "scheduler": scheduler,
        "tokenizer": tokenizer(model_max_length=128),
        "text_encoder": t5(),
    }


def ltx() -> LTXPipeline:
    """From text."""
    return LTXPipeline(**_parts())


def ltx_picture() -> LTXImageToVideoPipeline:
    """From a picture: the tokens of the first latent frame are the picture's, at time 0."""
    return LTXImageToVideoPipeline(**_parts())
