"""Seeing every torch call of a forward pass and handing operations to the rules in force."""

from captum_lrp_tx.propagation.interception.context import Context as Context
from captum_lrp_tx.propagation.interception.mode import Interception as Interception
