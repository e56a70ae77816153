"""Autograd functions whose backward passes are the rules, and what makes them cheap.

:mod:`.functions` and :mod:`.signed` are what rules are made of; :mod:`.pattern_product` is the
backward pass of attention without its pattern, :mod:`.uniform_attention` that of AttnLRP.
:mod:`.rows`, :mod:`.compact` and :mod:`.copies` save time and memory.
"""
