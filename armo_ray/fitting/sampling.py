"""Folds, splits and samples by hashes: the same rows whatever the order, the number of files or tasks."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


def hashes_of(ids: Sequence[str], use: str, seed: int = 0) -> Hashes:
    """A number from 0 to 2^64 - 1 for each id; those of two uses, or two seeds, are independent."""
    salt = f"{use}/{seed}/".encode()
    known: dict[str, bytes] = {}
    for name in ids:
        if name not in known:
            known[name] = hashlib.blake2b(salt + name.encode(), digest_size=8).digest()
    return np.frombuffer(b"".join(known[name] for name in ids), "<u8").astype(np.uint64)


def folds_of(prompt_ids: Sequence[str], folds: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """The fold (n,) of each row, from 0; the rows of a prompt share one."""
    return (hashes_of(prompt_ids, "fold", seed) % np.uint64(folds)).astype(np.int64)


def in_fraction(hashes: Hashes, fraction: float) -> npt.NDArray[np.bool_]:
    """Whether each row (n,) is among the given fraction of all hashes: a sample that needs no second look."""
    return hashes / 2.0**64 < fraction


def smallest(hashes: Hashes, count: int) -> npt.NDArray[np.int64]:
    """The places, in order, of the `count` smallest hashes: the sample that a union of such samples also has."""
    return np.sort(np.argsort(hashes, kind="stable")[:count])
