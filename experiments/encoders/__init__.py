"""Which rules find the known reason of an encoder's output: copied atoms and planted words.

``python -m experiments.encoders --sentiment DIR`` draws the items, explains them and writes the
tables; see the README beside this file.
"""
