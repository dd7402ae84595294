"""Five hundred of the cases of `make fuzz`, always the same ones."""

import io
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from jpeg_corpus import corpus, judge_cases, write_jpeg
from PIL import Image

from pipeline_ddrm_jpeg import JPEGFile
from pipeline_ddrm_jpeg.jpeg.markers import parse


def test_every_file_is_read_rightly_or_refused_within_two_seconds_and_512_mebibytes():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # its peaks of memory are its own
        verdicts = pool.submit(judge_cases, 1, 0, 500).result()
    assert {number for number, _ in verdicts} == set(range(500))
    bad = [(number, verdict) for number, verdict in verdicts if verdict.outcome.startswith("BAD")]
    assert not bad
    kinds = Counter(verdict.outcome.partition(":")[0] for _, verdict in verdicts)
    assert {"read", "refused", "damaged", "repaired"} <= set(kinds), "the cases reach every outcome"


@pytest.mark.parametrize("interval", [0, 3], ids=["", "restarts"])
@pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "apart"])
@pytest.mark.parametrize("factors", [[(1, 1)], [(2, 1), (1, 1), (1, 1)], [(2, 2), (1, 2), (2, 1)]], ids=str)
def test_coefficients_are_those_that_were_written(factors, interleaved, interval):
    data, truth = write_jpeg(factors, (53, 38), interleaved=interleaved, interval=interval)
    for plane, expected in zip(JPEGFile.open(data).coefficients, truth, strict=True):
        np.testing.assert_array_equal(plane[: expected.shape[0], : expected.shape[1]], expected)


def test_a_file_without_what_no_decoder_needs_has_the_same_pixels():
    for name, data in corpus().items():
        if not name.startswith("!"):
            whole, bared = (np.asarray(Image.open(io.BytesIO(one))) for one in (data, parse(data).bare()))
            assert np.array_equal(whole, bared), name


def test_the_corpus_has_files_to_read_and_files_to_refuse():
    refused = sum(name.startswith("!") for name in corpus())
    assert refused >= 20
    assert len(corpus()) - refused >= 50
