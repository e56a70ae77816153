"""Which function handles which torch call, by the name of the call."""

from __future__ import annotations

from captum_lrp_tx.propagation.interception import (
    activations,
    affine_products,
    composites,
    contractions,
    fused_attention,
    linear_maps,
    lookups,
    norms,
    products,
    recurrent_layers,
    sums,
)
from captum_lrp_tx.propagation.interception.calls import Handler

HANDLERS: dict[str, Handler] = {
    **linear_maps.HANDLERS,
    **contractions.HANDLERS,
    **products.HANDLERS,
    **fused_attention.HANDLERS,
    **norms.HANDLERS,
    **activations.HANDLERS,
    **lookups.HANDLERS,
    **sums.HANDLERS,
    **composites.HANDLERS,
    **recurrent_layers.HANDLERS,
    **affine_products.HANDLERS,
}
