"""What a tensor is for, told by what computed it: here attention, norms and gates are recognised.

A call reaches a handler (:mod:`captum_lrp_tx.propagation.interception`), which asks here what the
tensors in it are.  No name of a class and no spelling decides; every question is about the
autograd graph so far, which holds what depends on the explained inputs and nothing else.

================== ==============================================================================
:mod:`.patterns`   weights that sum to one, and along which axis
:mod:`.axes`       what an axis counts: places of the data, or what parameters made
:mod:`.contracted` which axes of its factors a product sums over
:mod:`.weighing`   the table: what a product is (attention, mixture, linear attention, plain)
:mod:`.summaries`  values summed with weights, and what may become of them
:mod:`.rescaling`  what such sums are divided by afterwards
:mod:`.entrywise`  the same for patterns that meet values entry by entry
:mod:`.undecided`  products whose meaning shows only in what becomes of them
:mod:`.degrees`    how tensors grow with what they were made of
:mod:`.homogeneity` norms: products that do not change when their source is scaled
:mod:`.own_size`   norms that no name tells, by Euler's theorem: refused
:mod:`.self_gated` activations written by hand
:mod:`.recurrence` factors of state space models
:mod:`.delta_rule` factors of gated delta rules
================== ==============================================================================

**To add a spelling**, add a line to the part in ``tests/helpers/spellings.py`` and run
``pytest tests/propagation/recognition -k "your spelling"``.  If it fails, the operation that is not
known is missing in one of the sets of names at the head of these modules: ``KEEP_ENTRIES`` of
:mod:`captum_lrp_tx.propagation.graph` for what moves entries, ``_SUMS`` of :mod:`.undecided` for
what adds them up, ``_POWERS`` and ``_REDUCTIONS`` of :mod:`.degrees` for statistics.

**What no name tells** is asked of the numbers.  Products of values with a pattern that are summed
in an unusual way (a product with ones, pooling, writes into a buffer) are seen by the gradient that
arrives, which is the same all along the axis (:func:`.undecided.settle_by_gradients`); a softmax
whose sum is taken in an unusual way is seen by weights that sum to one
(:func:`.patterns.mark_if_ones`).  Exponentials times values wait for the divisor that sums the
exponentials up (:func:`.rescaling.rescaled_entries`), as in FlashAttention and RWKV.

**Decided once.**  Weights of a softmax over what the model itself holds (memory slots, bases of
conditional convolutions, a grid of places) are an activation in front of a linear map: nothing is
frozen, in any spelling.  Values that are constant data (another text, the states of an encoder that
is not explained) are read by a constant pattern, as if they were explained.
"""
