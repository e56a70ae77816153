"""Truthful explanations of transformer predictions, as Captum attribution classes.

The names are those that ``__init__.pyi`` imports, each with what it needs when it is first used:
``import captum_lrp_tx`` imports no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
