"""Pairs in both directions are found among many of one prompt."""

import time
from itertools import product

import numpy as np
import numpy.typing as npt

from armo_ray.fit.pairs import Pairs, in_both_directions

LIMIT = 1e-5  # of the norm of a hidden state


def pairs_of(difference: npt.NDArray[np.float32], prompts: list[str], tokens: list[tuple[int, int]]) -> Pairs:
    count = len(prompts)
    names = tuple(map(str, range(count)))
    gates = np.empty((0, difference.shape[1]), np.float32)
    of = np.zeros(count, np.int64)
    return Pairs(difference, gates, of, tuple(prompts), names, names, np.array(tokens).reshape(-1, 2))


def test_they_are_those_that_comparing_all_pairs_finds() -> None:
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(12, 8)).astype(np.float32)
    sides = rng.integers(0, 12, (150, 2))
    sides = sides[sides[:, 0] != sides[:, 1]]
    noise = rng.choice([1e-7, 1e-2], (len(sides), 1)) * rng.normal(size=(len(sides), 8))
    difference = (texts[sides[:, 0]] - texts[sides[:, 1]] + noise).astype(np.float32)
    prompts = ["ab"[i] for i in rng.integers(0, 2, len(sides))]
    tokens = [(int(a) % 2, int(b) % 2) for a, b in sides]
    norm = np.full(len(sides), np.linalg.norm(texts[0]))
    expected = np.zeros(len(sides), bool)
    for i, j in product(range(len(sides)), repeat=2):
        same = prompts[i] == prompts[j] and tokens[i] == tokens[j][::-1] and i != j
        if same and np.linalg.norm(difference[i] + difference[j]) <= LIMIT * norm[i]:
            expected[[i, j]] = True
    assert 0 < expected.sum() < len(sides)
    np.testing.assert_array_equal(in_both_directions(pairs_of(difference, prompts, tokens), norm), expected)


def test_ten_thousand_pairs_of_one_prompt_and_length_take_no_more_than_seconds() -> None:
    count = 10_000  # comparing each with each takes minutes
    difference = np.random.default_rng(0).normal(size=(count, 16)).astype(np.float32)
    difference[1::1000] = -difference[::1000]
    difference[2::1000] = difference[::1000]
    difference[5000:] = difference[5000]  # one pair, many times
    difference[-1] *= -1
    began = time.process_time()
    found = in_both_directions(pairs_of(difference, ["a"] * count, [(5, 5)] * count), np.ones(count))
    assert time.process_time() - began < 10
    assert np.flatnonzero(found[:5000]).tolist() == [n + i for n in range(0, 5000, 1000) for i in range(3)]
    assert found[5000:].all()
