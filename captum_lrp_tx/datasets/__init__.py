"""Whole data sets: relevance of every example, in Parquet files, by one process or many.

Example::

    >>> from captum_lrp_tx import attribute_dataset
    >>> from captum_lrp_tx.models import sentiment
    >>> model, tokenizer = sentiment()
    >>> texts = ["a charming film", "a dull mess"]
    >>> found = attribute_dataset(model, texts, "relevance", tokenizer=tokenizer)  # doctest: +SKIP
    >>> found[0]["tokens"], found[0]["relevance"]  # doctest: +SKIP
"""

from captum_lrp_tx.datasets.reading import DatasetAttributions, read_dataset
from captum_lrp_tx.datasets.run import attribute_dataset

__all__ = ["DatasetAttributions", "attribute_dataset", "read_dataset"]
