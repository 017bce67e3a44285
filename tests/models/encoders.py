"""A sentence encoder in a folder, small enough for tests: a BERT of two layers with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.models.contract import GREETINGS


def bert_tokenizer() -> Tokenizer:
    """WordPiece with one piece a character: begin and end are marked."""
    characters = sorted({c for some in GREETINGS.values() for c in "".join(some).lower() if c != " "})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{c}" for c in characters)]
    found = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer(strip_accents=False)
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    found.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return found


def save_encoder(path: Path) -> None:
    """A BERT of two layers, 16 wide, as transformers saves it."""
    from transformers import BertConfig, BertModel  # here: it takes seconds, and every process collects all tests

    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=48, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = BertModel(config)
    config.save_pretrained(path)
    save_file({name: value.contiguous() for name, value in body.state_dict().items()}, path / "model.safetensors")
    tokenizer.save(str(path / "tokenizer.json"))
