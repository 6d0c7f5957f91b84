"""Step that finds prompts to leave out of a dataset: near-duplicates, and prompts that share text with a benchmark."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
from rensa import RMinHash

from armo_ray.curate.job import CurationJob
from armo_ray.curate.scratch_files import read_sorted, scan_parquet, write_parquet
from armo_ray.curate.word_split import is_as_long, ngrams, readable, shingles, words, words_and_signs
from armo_ray.errors import ConfigError
from armo_ray.outputs.database import database
from armo_ray.storage.filesystem import read_text
from armo_ray.storage.readers import BadRow, sample
from armo_ray.storage.shard_rows import read_shard
from armo_ray.storage.shards import find_shards

_SHINGLE = 3  # words and signs
_HASHES = 128
# a benchmark text that is shorter than an n-gram matches within a prompt only if it has this many words
_MIN_WORDS = 5


class Contaminated(NamedTuple):
    """A prompt that shares an n-gram with a benchmark file."""

    prompt_id: str
    file: str
    ngram: str


def find_files(files: Iterable[str]) -> None:
    """Raises ConfigError if a file of benchmark prompts is not there."""
    for file in files:
        if file.endswith(".txt"):
            read_text(file)
        else:
            find_shards([file])


def benchmark_ngrams(files: Iterable[str], size: int) -> dict[str, str]:
    """The n-grams of all texts in the files, each with the file it was first seen in.

    Raises ConfigError if a file cannot be read.
    """
    file_of: dict[str, str] = {}
    for file in files:
        for text in read_text(file).splitlines() if file.endswith(".txt") else _texts(file):
            for ngram in ngrams(words(text), size):
                file_of.setdefault(ngram, file)
    return file_of


def _shared_ngram(text: str, benchmark: dict[str, str], sizes: Sequence[int]) -> str | None:
    """The first n-gram of a text, of one of these sizes in words or the whole text, that a benchmark has."""
    tokens = words(text)
    for size in (*sizes, len(tokens)):
        for start in range(len(tokens) - size + 1):
            if (ngram := " ".join(tokens[start : start + size])) in benchmark:
                return ngram
    return None


def _texts(uri: str) -> Iterator[str]:
    """All texts of a Parquet or JSONL file, or of a directory of them."""
    for shard in find_shards([uri]):
        names, _, _ = sample(shard, 1)
        for batch in read_shard(shard, names, {}):
            for number, row in batch:
                if isinstance(row, BadRow):
                    raise ConfigError(f"decontaminate: {shard.uri} row {number}: {row.detail}")
                yield from _strings(row)


def _strings(value: Any) -> Iterator[str]:
    """Every string in a row, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _strings(entry)


def screen_bucket(
    job: CurationJob, texts: Sequence[str], benchmark: dict[str, str], bucket: int
) -> list[Contaminated]:
    """The contaminated prompts of a bucket. With --near-duplicates, also writes the MinHash of the others."""
    options = job.options
    with database(options) as con:
        con.register("read_texts", read_sorted(con, job.scratch, texts, job.bucket(bucket)))
        rows = con.execute(
            "SELECT prompt_id, any_value(prompt) FROM read_texts GROUP BY prompt_id ORDER BY prompt_id"
        ).fetchall()
    min_words = min(_MIN_WORDS, options.ngram)
    sizes = sorted(
        {ngram.count(" ") + 1 for ngram in benchmark if is_as_long(ngram, min_words)}, reverse=True
    )
    contaminated, hashes = [], []
    for prompt_id, messages in rows:
        text = "\n".join(message["content"] for message in messages)
        shared = _shared_ngram(text, benchmark, sizes)
        if shared is not None:
            contaminated.append(Contaminated(prompt_id, benchmark[shared], readable(shared)))
        elif options.near_duplicates is not None and (tokens := words_and_signs(text)):
            minhash = RMinHash(num_perm=_HASHES, seed=0)
            minhash.update(sorted(set(shingles(tokens, _SHINGLE))))
            hashes.append((prompt_id, minhash.digest()))
    if options.near_duplicates is not None:
        columns: list[Any] = [[p for p, _ in hashes], [digest for _, digest in hashes]]
        kinds = {"prompt_id": pa.string(), "digest": pa.list_(pa.uint32())}
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds.values(), strict=True)]
        write_parquet(job.scratch, f"minhash-{bucket:05d}", pa.table(arrays, names=list(kinds)))
    return contaminated


def minhashes(job: CurationJob) -> str:
    """SQL relation of the MinHash digests of the prompts that a job read."""
    return scan_parquet(job.scratch, (f"minhash-{bucket:05d}" for bucket in range(job.num_buckets)))


def near_duplicates(job: CurationJob) -> list[str]:
    """Ids of the prompts, of this job and of earlier increments, that are similar to a prompt with a smaller id.

    The digests are divided into bands. Prompts whose digests agree in a whole band are compared with the first of
    them, and left out if at least the given fraction of the two digests agrees. So time and memory grow with the
    number of prompts, not with the number of pairs of prompts.
    """
    min_similarity = job.options.near_duplicates
    assert min_similarity is not None
    # the longest band in which two prompts of this similarity nearly always agree somewhere
    width = max(w for w in (1, 2, 4, 8, 16) if w == 1 or (w / _HASHES) ** (1 / w) <= 0.9 * min_similarity)
    duplicates: set[str] = set()
    with database(job.options) as con:
        known = f" UNION ALL SELECT prompt_id, digest FROM {job.known}" if job.known else ""
        con.execute(f"CREATE TEMP TABLE hashed AS SELECT prompt_id, digest FROM {minhashes(job)}{known}")
        for start in range(0, _HASHES, width):
            duplicates |= _in_band(con, start, width, min_similarity)
    return sorted(duplicates)


def _in_band(con: duckdb.DuckDBPyConnection, start: int, width: int, min_similarity: float) -> set[str]:
    rows = con.execute(
        f"""
        WITH banded AS (
            SELECT prompt_id, min(prompt_id) OVER (PARTITION BY digest[{start + 1}:{start + width}]) AS first
            FROM hashed
        )
        SELECT b.prompt_id FROM banded b
        JOIN hashed x ON x.prompt_id = b.prompt_id JOIN hashed y ON y.prompt_id = b.first
        WHERE b.first <> b.prompt_id AND list_sum(
            list_transform(list_zip(x.digest, y.digest), lambda pair: (pair[1] = pair[2])::INTEGER)
        ) >= {min_similarity!r}::DOUBLE * {_HASHES}
        """
    ).fetchall()
    return {prompt_id for (prompt_id,) in rows}
