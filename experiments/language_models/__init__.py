"""Which rules find the known reason of a language model's next token.

``python -m experiments.language_models --model DIR`` draws the items, explains them and writes the
table; see the README beside this file.
"""
