"""Experiments on real models, each with one command that repeats it."""
