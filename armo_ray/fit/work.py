"""The folder in which a fit keeps what it has done so far, beside its output: a killed command goes on from there."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from armo_ray.outputs.dataset import delete, names_in
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

    It is deleted once the body ends without an error.
    """
    store = Store(place_of(output))
    fingerprint = fingerprint_of(identity)
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


def _clear(store: Store) -> None:
    names = names_in(store)
    delete(store, names)
    if store.local and names:
        remove_empty([store.root])
