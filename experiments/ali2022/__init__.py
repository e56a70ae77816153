"""The experiments of Ali et al. (2022) on texts, digits and molecules, on models of today.

``python -m experiments.ali2022.run`` repeats them; see the README beside this file.
"""
