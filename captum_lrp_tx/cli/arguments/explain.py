"""The arguments of the command ``explain``."""

from __future__ import annotations

import argparse

from captum_lrp_tx.cli.arguments.shared import add_rules, add_shown, add_subject, output

DESCRIPTION = "Explain a prediction of a transformer by conservative relevance propagation."
EXAMPLES = """examples:
  python -m captum_lrp_tx "has a lot of the virtues of eastwood at his best."
  python -m captum_lrp_tx "a slow film" --target positive --html film.html --png film.png
  python -m captum_lrp_tx "The capital of France is" --model ./gpt2 --target Paris --contrast Rome
  python -m captum_lrp_tx --image four.png --audit
  python -m captum_lrp_tx "a photo of a cat" --image cat.png --model ./clip
  python -m captum_lrp_tx --audio word.wav --model ./wav2vec2 --png word.png
  echo "never dull" | python -m captum_lrp_tx -"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_subject(parser)
    parser.add_argument(
        "--audio", metavar="FILE", help="explain a sound instead: WAV, one channel of 16 bits"
    )
    parser.add_argument(
        "--contrast", nargs="?", const=True, default=False, type=output, metavar="CLASS",
        help="explain why not this class or token instead; without a name, why not the runner-up",
    )  # fmt: skip
    add_rules(parser)
    parser.add_argument(
        "--positions", action="store_true", help="show the parts of words, positions and segments"
    )
    parser.add_argument(
        "--audit", action="store_true", help="also say how far the explanation can be trusted"
    )
    add_shown(parser)
