"""HunyuanVideo and HunyuanVideo 1.5."""

from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from tiny.encoders import WIDTH, byt5_tokenizer, clip_text, clip_tokenizer, llama, seeded, t5, tokenizer

HEAD = 108  # words that the chat template puts before the prompt: as many as the pipeline cuts off


def hunyuan() -> HunyuanVideoPipeline:
    """HunyuanVideo, its guidance told to the network."""
    seeded()
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()
    network = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 4),
    ).eval()
    return HunyuanVideoPipeline(
        text_encoder=llama(),
        tokenizer=tokenizer(),
        transformer=network,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip_text(),
        tokenizer_2=clip_tokenizer(),
    )


def _qwen() -> Qwen2_5_VLTextModel:
    config = Qwen2_5_VLTextConfig(
        vocab_size=32,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        rope_scaling={"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        rope_theta=1e6,
    )
    return Qwen2_5_VLTextModel(config).eval()


def hunyuan15() -> HunyuanVideo15Pipeline:
    """HunyuanVideo 1.5: an empty picture and its mask in further channels, guidance by a guider."""
    seeded()
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16, 16, 16, 16),
        layers_per_block=1,
    ).eval()
    network = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=8,
        rope_axes_dim=(2, 4, 4),
        target_size=64,
        task_type="t2v",
    ).eval()
    template = "{{ 'a ' * " + str(HEAD) + " }}{{ messages[1]['content'] }} left"
    pipe = HunyuanVideo15Pipeline(
        text_encoder=_qwen(),
        tokenizer=tokenizer(chat_template=template),
        transformer=network,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=t5(400),
        tokenizer_2=byt5_tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )
    return shorten(pipe)


def shorten(pipe: HunyuanVideo15Pipeline) -> HunyuanVideo15Pipeline:
    """Few tokens: lengths are no setting of this pipeline's, and 1000 tokens take their time."""
    pipe.tokenizer_max_length = pipe.tokenizer_2_max_length = 8
    pipe.vision_num_semantic_tokens = 4
    return pipe
