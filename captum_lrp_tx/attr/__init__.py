"""Captum attribution classes: what a user calls."""

from captum_lrp_tx.attr import targets

__all__ = ["targets"]
