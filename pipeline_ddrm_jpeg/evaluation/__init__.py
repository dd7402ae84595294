"""Measuring restorations of pictures that are known, as in section 4 of the paper; nothing of it is published.

`protocol` says what is measured and on which pictures, `run` restores and keeps the results, `metrics` and `baselines`
compare, `tables` prints.
"""

from .protocol import Picture, Protocol, find_pictures, prepare
from .run import Evaluation, evaluate_picture

__all__ = ["Evaluation", "Picture", "Protocol", "evaluate_picture", "find_pictures", "prepare"]
