"""Experiment 3 of Ali et al. 2022: which atoms a Graphormer finds active, on BACE."""
