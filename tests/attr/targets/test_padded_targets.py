"""Targets that read an output where an attention mask hides padding are warned of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from captum_lrp_tx import (
    ConservativeGI,
    ConservativeLRP,
    GenericAttention,
    LayerConservativeLRP,
    TokenIntegratedGradients,
)
from captum_lrp_tx.attr.targets import Contrast
from captum_lrp_tx.errors import PaddedTargetWarning

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
RIGHT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
IDS = torch.tensor([[1, 7, 3, 5], [1, 9, 0, 0]])


def causal() -> LlamaForCausalLM:
    """A model of its own for each case: a model is told once."""
    config = LlamaConfig(vocab_size=12, num_attention_heads=2, pad_token_id=0, **SIZES)
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config).eval()


def warned(explain: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explain()
    return [str(w.message) for w in caught if issubclass(w.category, PaddedTargetWarning)]


METHODS = {
    "lrp": lambda model, *args, **more: ConservativeLRP(model).attribute(*args, **more),
    "targets": lambda model, inputs, target, **more: ConservativeLRP(model).attribute_targets(
        inputs, [target], **more
    ),
    "layer": lambda model, *args, **more: LayerConservativeLRP(
        model, model.model.layers[0]
    ).attribute(*args, **more),
    "gi": lambda model, *args, **more: ConservativeGI(model).attribute(*args, **more),
    "gae": lambda model, *args, **more: GenericAttention(model).attribute(*args, **more),
    "ig": lambda model, *args, **more: TokenIntegratedGradients(model, n_steps=2).attribute(
        *args, **more
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_place_and_the_way_out_are_named(method: str) -> None:
    inputs = {"input_ids": IDS, "attention_mask": RIGHT}
    (told,) = warned(lambda: METHODS[method](causal(), inputs, target=(-1, 3)))
    assert "example 1 reads the output at position -1" in told
    assert "last token of this example is at 1" in told
    # what the message suggests is not warned of
    assert not warned(lambda: METHODS[method](causal(), inputs, target=[(3, 3), (1, 3)]))
    left = {"input_ids": IDS.flip(1), "attention_mask": RIGHT.flip(1)}
    assert not warned(lambda: METHODS[method](causal(), left, target=(-1, 3)))


def test_what_the_message_suggests_is_the_next_token_of_each_text() -> None:
    model = causal()
    inputs = {"input_ids": IDS, "attention_mask": RIGHT}
    relevance = ConservativeLRP(model).attribute(inputs, target=[(3, 3), (1, 3)])
    alone = ConservativeLRP(model).attribute(IDS[1:, :2], target=(-1, 3))
    torch.testing.assert_close(relevance[1:, :2], alone)


def test_a_mask_among_additional_forward_args_is_read() -> None:
    def explain(target: Any) -> Callable[[], Any]:
        return lambda: ConservativeLRP(causal()).attribute(
            IDS, target=target, additional_forward_args=RIGHT
        )

    assert warned(explain((-1, 3)))
    assert not warned(explain([(3, 3), (1, 3)]))


def test_parts_of_a_target_are_looked_at() -> None:
    inputs = {"input_ids": IDS, "attention_mask": RIGHT}
    contrast = [Contrast((3, 1), (3, 2)), Contrast((1, 1), (2, 2))]
    (told,) = warned(lambda: ConservativeLRP(causal()).attribute(inputs, target=contrast))
    assert "example 1 reads the output at position 2" in told


def test_of_two_sequences_the_mask_of_the_explained_one_counts() -> None:
    config = BartConfig(
        vocab_size=12, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        max_position_embeddings=16,
    )  # fmt: skip

    def explain(masks: dict[str, Tensor]) -> Callable[[], Any]:
        model = BartForConditionalGeneration(config).eval()
        inputs = {"input_ids": IDS, "decoder_input_ids": IDS, **masks}
        return lambda: ConservativeLRP(model).attribute(inputs, target=(-1, 3))

    assert not warned(explain({"attention_mask": RIGHT}))
    assert warned(explain({"attention_mask": RIGHT, "decoder_attention_mask": RIGHT}))


def test_an_output_of_other_places_than_the_mask_is_left_alone() -> None:
    model = causal()

    def last(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return model(input_ids, attention_mask).logits[:, :1]

    inputs = {"input_ids": IDS, "attention_mask": RIGHT}
    assert not warned(lambda: ConservativeLRP(last).attribute(inputs, target=(-1, 3)))
