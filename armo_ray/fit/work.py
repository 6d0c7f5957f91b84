"""The folder in which a fit keeps what it has done so far, beside its output: a killed command goes on from there."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError
from armo_ray.outputs.dataset import delete, names_in
from armo_ray.storage import lock
from armo_ray.storage.json_files import fingerprint_of, to_json
from armo_ray.storage.store import Store, final_name, remove_empty

logger = logging.getLogger(__name__)

MARK = "_work.json"  # says what is fitted in a folder; without it, a folder with files is not one of a fit
_WRITTEN = re.compile(r"sums\.npz|(sums|pairs)-\d+\.npz|teacher-\w+\.npy")


def place_of(output: str) -> str:
    """Where the folder of a fit with this output lies."""
    return f"{output.rstrip('/')}.work"


@contextmanager
def work_folder(output: str, identity: Mapping[str, Any]) -> Iterator[str]:
    """The folder, with what an earlier command left that fitted the same; what one left that did not is deleted first.

    It is deleted once the body ends without an error. Raises ConfigError if another command is fitting there, or if the
    folder holds files that no fit wrote, which are left as they are.
    """
    store = Store(place_of(output))
    fingerprint = fingerprint_of(identity)
    _check_ours(store)
    with lock.held(store, "fit", folders=()):
        _check_ours(store)
        saved = store.read_json(MARK)
        if saved is not None and saved.get("fingerprint") == fingerprint:
            logger.info("%s: going on from what is done there", store.uri)
        else:
            if saved is not None:
                logger.info("%s: left by a fit of other inputs or options: deleted", store.uri)
                delete(store, _written(store))
            store.write(MARK, to_json({"fingerprint": fingerprint, **identity}))
        yield store.uri
        _clear(store)
    if store.local:
        remove_empty([store.root])


def _check_ours(store: Store) -> None:
    """Raise ConfigError if the folder holds a file that no fit wrote."""
    names = [final_name(name) for name in names_in(store)]
    others = [name for name in names if name not in (MARK, lock.LOCK)]
    if MARK in names:
        others = [name for name in others if not _WRITTEN.fullmatch(name)]
    if others:
        raise ConfigError(
            f"{store.uri}: a fit keeps what it has done there, but it holds files of something else, such as "
            f"{min(others)}: move them, or choose another --output"
        )


def read_back(store: Store, file: str) -> bytes:
    """A file that the fit wrote, perhaps on another machine. Raises ConfigError if it is not here."""
    try:
        return store.read(file)
    except FileNotFoundError:
        raise _not_here(store, file) from None


def mapped(store: Store, file: str) -> npt.NDArray[Any]:
    """An .npy file of the folder, mapped and not read. Raises ConfigError if it is not here."""
    try:
        return np.asarray(np.load(store.path(file), mmap_mode="r", allow_pickle=False))
    except FileNotFoundError:
        raise _not_here(store, file) from None


def _not_here(store: Store, file: str) -> ConfigError:
    return ConfigError(
        f"{store.uri}/{file}: written by this fit, but not to be seen here: with --engine ray on several machines, "
        f"--output must lie on a disk that all of them share"
    )


def clear(output: str) -> None:
    """Delete the folder of a fit with this output; files that no fit wrote stay, as does a folder without a mark."""
    store = Store(place_of(output))
    if MARK not in names_in(store):
        return
    _clear(store)
    store.delete(lock.LOCK)
    if store.local:
        remove_empty([store.root])


def _written(store: Store) -> list[str]:
    """The files there that tasks and fits wrote, besides the mark and the lock."""
    return [name for name in names_in(store) if _WRITTEN.fullmatch(final_name(name))]


def _clear(store: Store) -> None:
    """Delete what a fit wrote, and last the mark, so that what is left of a killed command can be deleted, too.

    The lock stays, which this command has.
    """
    delete(store, _written(store))
    store.delete(MARK)
