"""Measuring restorations of pictures that are known, as in section 4 of the paper; nothing of it is published.

`protocol` says what is measured and on which pictures, `run` restores and keeps the results, `metrics` and `baselines`
compare, `tables` prints.
"""
