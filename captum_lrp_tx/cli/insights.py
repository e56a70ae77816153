"""The command ``insights``: the shipped models in Captum Insights, in the browser."""

from __future__ import annotations

import argparse
import errno
from typing import Any

from captum_lrp_tx.cli.models import transformers
from captum_lrp_tx.cli.status import status
from captum_lrp_tx.errors import InputError
from captum_lrp_tx.insights import image_page, serve, text_page
from captum_lrp_tx.insights.registration import insights_module
from captum_lrp_tx.models import digit_samples, digits, sentiment

#: Film reviews with their class (1: positive); the model gets some of them wrong.
REVIEWS: tuple[tuple[str, int], ...] = (
    ("has a lot of the virtues of eastwood at his best.", 1),
    ("the plot is thin, the jokes are stale and the ending is a mess.", 0),
    ("not a bad way to spend an evening", 1),
    ("i was moved to tears, and i hardly ever cry at the movies.", 1),
    ("a charming and funny film with a big heart", 1),
    ("the actors do their best, but the script never comes to life.", 0),
    ("the film is anything but boring", 1),
    ("two hours of noise without a single idea", 0),
    ("it is impossible to look away from this quiet, beautiful story.", 1),
    ("the trailer is far better than the film", 0),
    ("you will not find a more honest portrait of growing old.", 1),
    ("a promising start that goes nowhere", 0),
    ("funny only if you have never heard a joke before", 0),
    ("i would happily watch it again tomorrow.", 1),
    ("nothing here is new, yet all of it works.", 1),
    ("so bad that even its fans look at the clock", 0),
)


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Serves the pages until interrupted.

    Raises:
        MissingPackageError: This Captum has no Insights, or its server misses a package.
        InputError: The port is taken.
    """
    with status("importing Captum Insights"):
        insights_module("app")
    transformers()  # which keeps quiet from then on
    with status("loading the models"):
        pages = shipped_pages()
    try:
        serve(pages, arguments.port, open_browser=not arguments.no_browser)
    except KeyboardInterrupt:
        print("\nstopped")
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise InputError(
                f"port {arguments.port} cannot be used ({error.strerror}); choose another with "
                "--port, or leave it out for a free one"
            ) from error
        raise
    return 0


def shipped_pages() -> dict[str, Any]:
    """A page for each of the models that come with the package.

    Returns:
        dict: ``"reviews"`` and ``"digits"``, for :func:`captum_lrp_tx.insights.serve`.

    Raises:
        MissingPackageError: This Captum has no Insights, or its server misses a package.
    """
    texts, labels = zip(*REVIEWS, strict=True)
    images, digit_labels = digit_samples()
    order = [*range(0, len(images), 2), *range(1, len(images), 2)]  # each digit once, then again
    return {
        "reviews": text_page(*sentiment(), texts, labels, name="Review"),
        "digits": image_page(
            digits(), images[order], digit_labels[order], name="Digit", baseline=-1.0
        ),
    }
