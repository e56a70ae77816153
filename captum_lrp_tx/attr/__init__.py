"""Captum attribution classes: what a user calls."""
