"""The formats of input files, recognized by file name in any case; first bytes show if a file is something else."""

import re

PARQUET, LINES, LINES_GZ, LINES_ZST = ".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst"
KINDS = (PARQUET, LINES, LINES_GZ, LINES_ZST)
ENDINGS = ".parquet, .jsonl or .ndjson (.gz, .zst)"  # for messages
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
    ".txt": "write one JSON object per line",
}
_MAGIC = {
    b"\x1f\x8b": "it is compressed with gzip: name it .jsonl.gz",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd: name it .jsonl.zst",
    b"PAR1": "it is Parquet: name it .parquet",
    b"BZh": "it is compressed with bzip2: decompress it",
}


def kind_of(uri: str) -> str | None:
    """One of `KINDS`, or None for a file of another kind. .ndjson and .json are read as .jsonl is."""
    match = _NAME.search(uri)
    if match is None:
        return None
    return PARQUET if match[1] else LINES + (match[3] or "").lower()


def is_read(path: str, input_uri: str) -> bool:
    """Whether a file below an input (a file name, directory or glob) is one of its shards.

    A .json file is one only if the input names .json files: beside shards they usually hold metadata.
    """
    match = _NAME.search(path)
    return match is not None and (
        (match[2] or "").lower() != "json" or ".json" in input_uri.rpartition("/")[2].lower()
    )


def advice(path: str) -> str:
    """How to convert a file of another kind, or "" if it is not a known one."""
    stem, dot, end = path.rpartition(".")
    template = _ADVICE.get(f"{dot}{end}".lower(), "")
    return template.format(path=path, stem=stem)


def oddity(head: bytes) -> str | None:
    """What is wrong with a file that begins with these decompressed bytes; None if they look like lines of JSON."""
    for magic, fault in _MAGIC.items():
        if head.startswith(magic):
            return fault
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        return "it is a JSON array: write one object per line, as jq -c '.[]' does"
    if text.startswith((b"{'", b'{"')) and b"\r" in text and b"\n" not in text:
        return "its lines end with CR only: end them with LF, as tr '\\r' '\\n' does"
    if text.startswith(b"{'"):
        return "its lines are Python dicts, not JSON: write them with json.dumps"
    if re.match(rb"\{\s*\n", text):
        return "its objects span several lines: write one object per line, as jq -c . does"
    return None
