"""The attribution methods by name: what is known of each, how to choose and how to run them."""

from captum_lrp_tx.methods.registry import METHODS, Method, find_method, unavailable_methods

__all__ = ["METHODS", "Method", "find_method", "unavailable_methods"]
