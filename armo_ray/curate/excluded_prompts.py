"""Prompts that must not be in a dataset: near-duplicates of others, and those of a benchmark."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
from rensa import RMinHash

from armo_ray.curate.candidates import Plan, in_bucket, work_files, write_work
from armo_ray.curate.word_split import is_as_long, ngrams, readable, shingles, words, words_and_signs
from armo_ray.errors import ConfigError
from armo_ray.outputs.scores import database
from armo_ray.storage.filesystem import read_text
from armo_ray.storage.readers import BadRow, sample
from armo_ray.storage.shard_rows import read_shard
from armo_ray.storage.shards import find_shards

_SHINGLE = 3  # words and signs
_HASHES = 128
_LEAST = 5  # words of a benchmark's text that is shorter than an n-gram, to be looked for within a prompt


class Contaminated(NamedTuple):
    """A prompt that shares words with a benchmark."""

    prompt_id: str
    file: str
    ngram: str


def benchmark_ngrams(files: Iterable[str], size: int) -> dict[str, str]:
    """The n-grams of all texts in some files, each with the file it was first seen in.

    Raises ConfigError where a file cannot be read.
    """
    found: dict[str, str] = {}
    for file in files:
        for text in read_text(file).splitlines() if file.endswith(".txt") else _texts(file):
            for ngram in ngrams(words(text), size):
                found.setdefault(ngram, file)
    return found


def _shared(text: str, benchmark: dict[str, str], sizes: Sequence[int]) -> str | None:
    """A run of so many words of a text that a benchmark has, or all of the text."""
    found = words(text)
    for size in (*sizes, len(found)):
        for start in range(len(found) - size + 1):
            if (ngram := " ".join(found[start : start + size])) in benchmark:
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
    """Every text in a row, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _strings(entry)


def screen_bucket(
    plan: Plan, texts: Sequence[str], benchmark: dict[str, str], bucket: int
) -> list[Contaminated]:
    """Find the contaminated prompts of a bucket, and write the MinHash of the others where it is wanted."""
    options = plan.options
    with database(options) as con:
        rows = con.execute(
            f"SELECT prompt_id, any_value(prompt) FROM {work_files(plan, iter(texts))} "
            f"WHERE {in_bucket(plan, bucket)} GROUP BY prompt_id ORDER BY prompt_id"
        ).fetchall()
    least = min(_LEAST, options.ngram)
    sizes = sorted({ngram.count(" ") + 1 for ngram in benchmark if is_as_long(ngram, least)}, reverse=True)
    found, hashes = [], []
    for prompt_id, messages in rows:
        text = "\n".join(message["content"] for message in messages)
        hit = _shared(text, benchmark, sizes)
        if hit is not None:
            found.append(Contaminated(prompt_id, benchmark[hit], readable(hit)))
        elif options.near_duplicates is not None and (signs := words_and_signs(text)):
            minhash = RMinHash(num_perm=_HASHES, seed=0)
            minhash.update(sorted(set(shingles(signs, _SHINGLE))))
            hashes.append((prompt_id, minhash.digest()))
    if options.near_duplicates is not None:
        columns: list[Any] = [[p for p, _ in hashes], [digest for _, digest in hashes]]
        kinds = {"prompt_id": pa.string(), "digest": pa.list_(pa.uint32())}
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds.values(), strict=True)]
        write_work(plan, f"minhash-{bucket:05d}", pa.table(arrays, names=list(kinds)))
    return found


def near_duplicates(plan: Plan) -> list[str]:
    """Prompts that are similar to one that comes before them in the order of prompt ids.

    The digests are cut into bands. Of prompts that agree in all of a band, each is compared with the first, and
    removed where at least the wanted fraction of their digests agrees: time and memory grow with the number of
    prompts, not of pairs of them.
    """
    least = plan.options.near_duplicates
    assert least is not None
    # the longest band that two prompts as similar as wanted still agree in somewhere, nearly always
    width = max(w for w in (1, 2, 4, 8, 16) if w == 1 or (w / _HASHES) ** (1 / w) <= 0.9 * least)
    found: set[str] = set()
    with database(plan.options) as con:
        files = work_files(plan, (f"minhash-{bucket:05d}" for bucket in range(plan.num_buckets)))
        con.execute(f"CREATE TEMP TABLE hashed AS FROM {files}")
        for start in range(0, _HASHES, width):
            found |= _in_band(con, start, width, least)
    return sorted(found)


def _in_band(con: duckdb.DuckDBPyConnection, start: int, width: int, least: float) -> set[str]:
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
        ) >= {least!r}::DOUBLE * {_HASHES}
        """
    ).fetchall()
    return {prompt_id for (prompt_id,) in rows}
