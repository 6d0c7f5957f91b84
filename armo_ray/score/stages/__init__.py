"""The three steps of a unit of work: read and tokenize, score, write and commit.

Plain functions over one-row tables, which run the same in a Ray task and in a test.
"""

from armo_ray.score.stages.isolate import Isolated
from armo_ray.score.stages.read import read_and_tokenize, tokenize_rows
from armo_ray.score.stages.score import Scorer
from armo_ray.score.stages.write import candidate_rows, write_and_commit

__all__ = ["Isolated", "Scorer", "candidate_rows", "read_and_tokenize", "tokenize_rows", "write_and_commit"]
