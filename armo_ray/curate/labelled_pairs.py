"""Reads pairs that people labelled and a model scored: candidates of one row with the roles chosen and rejected.

Pairs are in memory: about 250 bytes each with 20 rewards.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import duckdb
import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import quote
from armo_ray.outputs.database import database
from armo_ray.outputs.dataset import parts_of
from armo_ray.outputs.options import DatasetOptions
from armo_ray.outputs.scores import Scores, check_models, open_scores, scan
from armo_ray.storage import commits
from armo_ray.storage.parts import DATA
from armo_ray.storage.records import DamagedError
from armo_ray.storage.store import Store

Floats = npt.NDArray[np.float64]

_TIED = "coalesce(list_contains(flags, 'tie'), false)"
# Without text, the same response to the same prompt is recognized by its numbers; a judge's are too coarse for that.
_BY_NUMBERS = (
    "CASE WHEN num_response_tokens IS NULL THEN row_id "
    "ELSE concat_ws('/', num_response_tokens, score, rewards::VARCHAR) END"
)
EQUAL, REVERSED, LACKING, TIED = (
    "pairs with equal responses",
    "pairs labelled in both directions",
    "pairs without all rewards",
    "rows labelled as ties",
)


@dataclass(frozen=True)
class LabelledPairs:
    """Differences, chosen less rejected, of P pairs in the order of their rows."""

    prompts: tuple[str, ...]  # (P,) prompt_id
    rewards: Floats  # (P, K)
    score: Floats  # (P,)
    length: Floats | None  # (P,) of log(1 + tokens); None if a response has no token count
    left_out: Mapping[str, int]  # what was not used

    def __len__(self) -> int:
        return len(self.prompts)

    def of(self, which: npt.NDArray[np.bool_]) -> "LabelledPairs":
        """Those of the pairs for which `which` (P,) is true."""
        prompts = tuple(prompt for prompt, kept in zip(self.prompts, which, strict=True) if kept)
        length = None if self.length is None else self.length[which]
        return replace(
            self, prompts=prompts, rewards=self.rewards[which], score=self.score[which], length=length
        )


def open_pairs(uris: Iterable[str], scores: Scores) -> Scores:
    """Outputs of labelled pairs, of the model and formula of `scores`. Raises ConfigError for anything else."""
    uris = tuple(uris)
    for uri in uris:
        _check_labelled_by_people(Store(uri))
    pairs = open_scores(uris)
    try:
        check_models((scores.outputs[0], pairs.outputs[0]), (scores.metadata, pairs.metadata))
    except ConfigError as error:
        raise ConfigError(
            f"--fit-pairs: {error}: score the pairs with this model, or reweigh them the same way"
        ) from None
    return pairs


def _check_labelled_by_people(store: Store) -> None:
    with commits.reading(store, "fit-pairs: "):
        try:
            parts = parts_of(store) or ()
        except DamagedError as error:
            raise ConfigError(f"--fit-pairs: {error}") from error
    if any(part.is_in(DATA) for part in parts):
        raise ConfigError(
            f"--fit-pairs {store.uri}: a dataset that was made from scores, whose labels are the model's own. Give an "
            f"output of score, of rows that people labelled as chosen and rejected"
        )


def read_pairs(options: DatasetOptions, scores: Scores) -> LabelledPairs:
    """All pairs but those that say nothing, or that contradict each other.

    Raises ConfigError if there are none.
    """
    with database(options) as con:
        _read(con, scores)
        left_out = {
            EQUAL: _count(con, "same"),
            REVERSED: _count(con, "contradicted AND NOT same"),
            LACKING: _count(con, "lacking AND NOT same AND NOT contradicted"),
        }
        left_out[TIED] = con.sql(
            f"SELECT DISTINCT source, source_row FROM ({scan(scores.parts)}) WHERE {_TIED}"
        ).shape[0]
        table = con.sql(
            "SELECT * FROM __pairs WHERE NOT same AND NOT contradicted AND NOT lacking ORDER BY place"
        ).to_arrow_table()
        roles = con.sql(f"SELECT DISTINCT role FROM ({scan(scores.parts)}) ORDER BY role").fetchall()
    left_out = {what: count for what, count in left_out.items() if count}
    if not table.num_rows:
        found = ", ".join(f"{what}: {count}" for what, count in left_out.items())
        raise ConfigError(
            f"--fit-pairs {scores.outputs[0]}: no row has both a chosen and a rejected response that differ; its roles "
            f"are {', '.join(str(role) for (role,) in roles)}{'; ' + found if found else ''}. Score rows that people "
            f"labelled, in columns such as chosen and rejected"
        )
    columns = [table[f"r{i}"].to_numpy() for i in range(len(scores.reward_names))]
    length = table["length"]
    return LabelledPairs(
        prompts=tuple(table["prompt_id"].to_pylist()),
        rewards=np.stack(columns, axis=1),
        score=table["score"].to_numpy(),
        length=None if length.null_count else length.to_numpy(),
        left_out=left_out,
    )


def _count(con: duckdb.DuckDBPyConnection, condition: str) -> int:
    return int(con.sql(f"SELECT 1 FROM __pairs WHERE {condition}").shape[0])


def _read(con: duckdb.DuckDBPyConnection, scores: Scores) -> None:
    """Make the temporary table __pairs: differences, the place in the order of rows, and what is wrong with a pair."""
    text = "md5(response::VARCHAR)" if scores.has_text else _BY_NUMBERS
    names = [f"rewards.{quote(name)}" for name in scores.reward_names]
    differences = [f"c.{name}::DOUBLE - r.{name}::DOUBLE AS r{i}" for i, name in enumerate(names)]
    finite = [f"coalesce(isfinite(r{i}), false)" for i in range(len(names))]
    con.execute(
        f"""CREATE TEMP TABLE __pairs AS
            WITH side AS (
                SELECT source, source_row, candidate, role, prompt_id, score, rewards, num_response_tokens,
                    {text} AS text
                FROM ({scan(scores.parts)}) WHERE role IN ('chosen', 'rejected') AND NOT {_TIED}),
            pair AS (
                SELECT c.prompt_id AS prompt_id, c.text AS ours, r.text AS theirs,
                    {", ".join(differences)}, c.score::DOUBLE - r.score::DOUBLE AS score,
                    ln(1.0 + c.num_response_tokens) - ln(1.0 + r.num_response_tokens) AS length,
                    row_number() OVER (ORDER BY source, source_row, c.candidate, r.candidate) AS place
                FROM side c JOIN side r USING (source, source_row) WHERE c.role = 'chosen' AND r.role = 'rejected')
            SELECT * EXCLUDE (ours, theirs), ours = theirs AS same,
                count(DISTINCT ours) OVER (PARTITION BY prompt_id, least(ours, theirs), greatest(ours, theirs)) > 1
                    AS contradicted,
                NOT ({" AND ".join([*finite, "isfinite(score)"])}) AS lacking
            FROM pair"""
    )
