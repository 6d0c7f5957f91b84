"""Retrying storage operations: which errors are transient, how long to retry, and the message when retries fail.

botocore repeats each request itself, five times unless AWS_MAX_ATTEMPTS says otherwise: on 500, 502, 503, 504,
429, throttling, lost connections and timeouts. Here the whole operation is repeated, with longer pauses and for
minutes. This covers what botocore does not: truncated bodies, and a storage that is unreachable for a while.
"""

import logging
import os
import random
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 120.0  # since the first attempt; the last may end up to 90 s later, in botocore
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0

_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}  # 409: another write of the same name is in progress
# 4xx errors caused in transit; NoSuchUpload: the upload was completed but the response was lost
_CODES = {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "NoSuchUpload"}
# packages whose errors without a status are connection errors
_TRANSPORTS = {"aiohttp", "httpx", "httpcore", "requests"}
# by name, as importing botocore takes as long as all that most commands do with it
_LOST = {
    *("builtins.ConnectionError", "builtins.TimeoutError", "botocore.exceptions.HTTPClientError"),
    *("botocore.exceptions.IncompleteReadError", "botocore.parsers.ResponseParserError"),
    *("botocore.exceptions.ConnectionError", "botocore.exceptions.CredentialRetrievalError"),
}
# names of environment variables whose values must not appear in messages
_SECRET = re.compile("SECRET|TOKEN|PASSW|CREDENTIAL|CONNECTION_STRING|_KEY$|_SAS$", re.IGNORECASE)

T = TypeVar("T")


class Answer(NamedTuple):
    """The response of a server to a failed request; the status is None if there was no response."""

    status: int | None
    code: str = ""


def answer_of(error: BaseException) -> Answer:
    """The response in an error of botocore (as s3fs wraps it), aiohttp, httpx, gcsfs or azure."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        code = str(response.get("Error", {}).get("Code", ""))
        return Answer(response.get("ResponseMetadata", {}).get("HTTPStatusCode"), code)
    for source in (response, error):
        for name in ("status_code", "status", "code"):
            status = getattr(source, name, None)
            if isinstance(status, int) and status >= 100:
                return Answer(status)
    return Answer(None)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    answer = answer_of(error)
    if answer.status is not None:
        return answer.status in _STATUS or answer.code in _CODES
    kinds = _kinds(error)
    packages = {kind.partition(".")[0] for kind in kinds}
    return "botocore.exceptions.SSLError" not in kinds and bool(kinds & _LOST or packages & _TRANSPORTS)


def _kinds(error: BaseException) -> set[str]:
    """The names, with their modules, of the classes that an error is of."""
    return {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}


def patiently(what: str, attempt: Callable[[], T]) -> T:
    """Return the result of a storage operation, retrying while its errors are transient. `what` names it in messages.

    Raises RuntimeError if it still fails after `PATIENCE_SECONDS`. It is not an OSError, which means a damaged file or
    a storage that refuses.
    """
    began, pause, attempts = time.monotonic(), FIRST_PAUSE_SECONDS, 0
    while True:
        try:
            return attempt()
        except Exception as error:
            if not is_transient(error):
                if "botocore.exceptions.BotoCoreError" in _kinds(error):  # no credentials, or no region
                    raise OSError(describe_error(error)) from None
                raise
            reason, attempts = describe_error(error), attempts + 1
        waited = time.monotonic() - began
        if waited + pause > PATIENCE_SECONDS:
            # not `from`: the error's own text may hold what `describe_error` leaves out
            raise RuntimeError(
                f"{what}: failed {attempts} times in {waited:.0f} s, last: {reason}. Check that the storage can be "
                f"reached and is not overloaded, then run the same command again; committed work is kept"
            )
        logger.warning("%s: %s; trying again in %.1f s", what, reason, pause)
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def describe_error(error: Any) -> str:
    """The type and text of an error on one line, without credentials."""
    answer = answer_of(error) if isinstance(error, BaseException) else Answer(None)
    status = f" (HTTP {answer.status})" if answer.status else ""
    text = re.sub(r"\s+", " ", str(error)).strip() or "no answer"
    text = re.sub(r"://[^/\s@]+@", "://***@", text)
    text = re.sub(
        r"(?i)\b(sig|signature|x-amz-[a-z-]+|token|awsaccesskeyid|accountkey)=[^&;\s\"']+", r"\1=***", text
    )
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET.search(name):
            text = text.replace(value, "***")
    kind = "" if type(error) is OSError else f"{type(error).__name__}: "
    return f"{kind}{text:.400}{status}"
