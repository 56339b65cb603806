"""AnimateDiff and ModelScope: convolutional networks with an autoencoder of single pictures."""

from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    PNDMScheduler,
    StableDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
)

from tiny.encoders import WIDTH, clip_text, clip_tokenizer, seeded


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[4, 4, 4, 4],
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
    ).eval()


def _picture_network() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 8),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=2,
    )


def motion_adapter() -> MotionAdapter:
    """Motion modules for the pictures' network."""
    return MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )


def stable_diffusion() -> StableDiffusionPipeline:
    """Pictures from text, with the scheduler that Stable Diffusion 1.5 comes with."""
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    parts = _vae(), clip_text(), clip_tokenizer(), _picture_network(), scheduler
    return StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False)


def animatediff() -> AnimateDiffPipeline:
    """Stable Diffusion with a motion adapter, and DDIM on the adapter's linear betas."""
    seeded()
    picture_network, adapter = _picture_network(), motion_adapter()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="linspace",
    )
    return AnimateDiffPipeline(
        vae=_vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=picture_network,
        motion_adapter=adapter,
        scheduler=scheduler,
    )


def modelscope() -> TextToVideoSDPipeline:
    """ModelScope from text."""
    seeded()
    network = UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=2,
    ).eval()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return TextToVideoSDPipeline(
        vae=_vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=network, scheduler=scheduler
    )
