"""Text and picture encoders of random weights, and tokenizers that are built from a list of words."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ByT5Tokenizer,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ["a", "small", "red", "blue", "cat", "runs", "the", "ball", "falls", "left"]
WIDTH = 16


def tokenizer(**options) -> PreTrainedTokenizerFast:
    """Words as tokens, with the special tokens of T5."""
    vocabulary = {word: place for place, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **options
    )


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's, without merges, so that words are letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: place for place, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def byt5_tokenizer() -> ByT5Tokenizer:
    """Bytes as tokens."""
    return ByT5Tokenizer()


def umt5() -> UMT5EncoderModel:
    """Wan's."""
    return UMT5EncoderModel(UMT5Config(vocab_size=32, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).eval()


def t5(vocabulary: int = 32) -> T5EncoderModel:
    """T5, as CogVideoX, LTX and Mochi have it."""
    return T5EncoderModel(
        T5Config(vocab_size=vocabulary, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).eval()


def clip_text() -> CLIPTextModel:
    """The text half of CLIP."""
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return CLIPTextModel(config).eval()


def clip_vision() -> tuple[CLIPVisionModel, CLIPImageProcessor]:
    """The picture half of CLIP and what prepares its pictures."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return CLIPVisionModel(config).eval(), processor


def llama() -> LlamaModel:
    """HunyuanVideo's."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        pad_token_id=0,
    )
    return LlamaModel(config).eval()


def seeded(seed: int = 0) -> None:
    """The same random weights each time."""
    torch.manual_seed(seed)
