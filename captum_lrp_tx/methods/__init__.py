"""The methods by name: all that is known of each, how they are chosen and run.

A method of your own needs no entry: pass a pair of a name and a function that makes an attribution
from the model. An entry in ``METHODS`` gives it a colour, and the commands know it by its name.

Example::

    >>> from captum_lrp_tx.methods import find_method
    >>> find_method("rollout").about
    'attention multiplied over layers (Abnar & Zuidema 2020)'
"""

from captum_lrp_tx.methods.line_styles import styles
from captum_lrp_tx.methods.registry import METHODS, Chosen, Method, choose_methods, find_method
from captum_lrp_tx.methods.running import Found, reason, run

__all__ = [
    "METHODS",
    "Chosen",
    "Found",
    "Method",
    "choose_methods",
    "find_method",
    "reason",
    "run",
    "styles",
]
