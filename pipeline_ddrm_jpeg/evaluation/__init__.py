"""Measuring restorations of images that are known, as in section 4 of the paper; nothing of it is published.

`protocol` says what is measured and on which images, `run` restores and keeps the results, `metrics` and `baselines`
compare, `tables` prints.
"""

from .protocol import Picture, Protocol, find_images, prepare
from .run import Evaluation, evaluate_image

__all__ = ["Evaluation", "Picture", "Protocol", "evaluate_image", "find_images", "prepare"]
