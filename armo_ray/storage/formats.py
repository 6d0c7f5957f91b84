"""The formats of input files: told by their names, in whatever case, and of files that are something else by their
first bytes."""

import re

PARQUET, LINES, LINES_GZ, LINES_ZST = ".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst"
KINDS = (PARQUET, LINES, LINES_GZ, LINES_ZST)
CODECS = {LINES_GZ: "gzip", LINES_ZST: "zstd"}
_NAME = re.compile(r"\.(?:(parquet)|(jsonl|ndjson|json)(\.gz|\.zst)?)$", re.IGNORECASE)
_TO_PARQUET = (
    'python -c "import pyarrow.{module} as m, pyarrow.parquet as p; '
    "p.write_table(m.{read}, '{name}.parquet')\""
)
_ADVICE = {
    ".csv": _TO_PARQUET.format(module="csv", read="read_csv('{path}')", name="{stem}"),
    ".tsv": "read it with pyarrow.csv and write it with pyarrow.parquet",
    ".arrow": _TO_PARQUET.format(module="ipc", read="open_stream('{path}').read_all()", name="{stem}"),
    ".feather": _TO_PARQUET.format(module="feather", read="read_table('{path}')", name="{stem}"),
    ".bz2": "decompress it, or compress it with gzip or zstd",
    ".xz": "decompress it, or compress it with gzip or zstd",
    ".zip": "unpack it",
    ".txt": "write one JSON object a line",
}
_MAGIC = {
    b"\x1f\x8b": "it is compressed by gzip: name it .jsonl.gz",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd: name it .jsonl.zst",
    b"PAR1": "it is Parquet: name it .parquet",
    b"BZh": "it is compressed by bzip2: decompress it",
}


def kind_of(uri: str) -> str | None:
    """The kind of a file that is read, None of others: .ndjson and .json are lines of JSON as .jsonl is."""
    found = _NAME.search(uri)
    if found is None:
        return None
    return PARQUET if found[1] else LINES + (found[3] or "").lower()


def is_read(path: str, asked: str) -> bool:
    """Whether a file is a shard of an input that is asked for by a name, directory or glob.

    A .json file is one where the input says so: beside shards such files mostly tell about a data set.
    """
    found = _NAME.search(path)
    return found is not None and (
        (found[2] or "").lower() != "json" or ".json" in asked.rpartition("/")[2].lower()
    )


def advice(path: str) -> str:
    """What to do about a file of another kind, "" where that cannot be told."""
    stem, dot, end = path.rpartition(".")
    told = _ADVICE.get(f"{dot}{end}".lower(), "")
    return told.format(path=path, stem=stem) if told else ""


def oddity(head: bytes) -> str | None:
    """What a file with these first bytes is, after decompression, where it is no lines of JSON; None where it is."""
    for magic, told in _MAGIC.items():
        if head.startswith(magic):
            return told
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        return "it is a JSON array: write one object a line, as jq -c '.[]' does"
    if text.startswith((b"{'", b'{"')) and b"\r" in text and b"\n" not in text:
        return "its lines end with CR alone: write them with LF, as tr '\\r' '\\n' does"
    if text.startswith(b"{'"):
        return "its lines are Python's, not JSON: write them with json.dumps"
    if re.match(rb"\{\s*\n", text):
        return "its objects go over several lines: write one object a line, as jq -c . does"
    return None
