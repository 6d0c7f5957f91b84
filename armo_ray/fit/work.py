"""The folder in which a fit keeps what it has done so far, beside its output: a killed command goes on from there."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.outputs.dataset import delete, names_in
from armo_ray.storage import lock
from armo_ray.storage.json_files import fingerprint_of, to_json
from armo_ray.storage.store import Store, remove_empty

logger = logging.getLogger(__name__)

_IDENTITY = "fit.json"


def place_of(output: str) -> str:
    """Where the folder of a fit with this output lies."""
    return f"{output.rstrip('/')}.work"


@contextmanager
def work_folder(output: str, identity: Mapping[str, Any]) -> Iterator[str]:
    """The folder, with what an earlier command left that fitted the same; anything else there is deleted first.

    It is deleted once the body ends without an error. Raises ConfigError if another command is fitting there.
    """
    store = Store(place_of(output))
    fingerprint = fingerprint_of(identity)
    with lock.held(store, "fit", folders=()):
        saved = store.read_json(_IDENTITY)
        if saved is not None and saved.get("fingerprint") == fingerprint:
            logger.info("%s: going on from what is done there", store.uri)
        else:
            if saved is not None:
                logger.info("%s: left by a fit of other inputs or options: deleted", store.uri)
                _clear(store)
            store.write(_IDENTITY, to_json({"fingerprint": fingerprint, **identity}))
        yield store.uri
        _clear(store)
    if store.local:
        remove_empty([store.root])


def read_back(store: Store, file: str) -> bytes:
    """A file that a task wrote. Raises ConfigError if it is not here."""
    try:
        return store.read(file)
    except FileNotFoundError:
        raise ConfigError(
            f"{store.uri}/{file}: written by a task, but not to be seen here: with --engine ray on several machines, "
            f"--output must lie on a disk that all of them share"
        ) from None


def clear(output: str) -> None:
    """Delete the folder of a fit with this output."""
    store = Store(place_of(output))
    delete(store, names_in(store))
    if store.local:
        remove_empty([store.root])


def _clear(store: Store) -> None:
    """Delete all but the lock, which this command has."""
    delete(store, [name for name in names_in(store) if name != lock.LOCK])
