"""Tiny models of transformers with random weights and word pieces, saved to folders."""

import tokenizers
import torch
import transformers

WORDS = "has a lot of the eastwood at his best . virt ##ues film < > script / ( ) 1 alert"


def saved(folder, model, *others):
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for item in (model, *others):
        item.save_pretrained(folder)
    return str(folder)


def fast_tokenizer(backend, **special):
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=32, **special
    )


def wordpiece():
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*names, *WORDS.split()])}
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return fast_tokenizer(
        backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


def bert_config(**more):
    return transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, **more,
    )  # fmt: skip


def vision_config(channels=1):
    return transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=channels, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, id2label={0: "cat", 1: "dog"},
    )  # fmt: skip
