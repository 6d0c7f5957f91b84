"""Labels are mapped from their range, and what is summed goes on after a command was stopped."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from armo_ray.errors import ConfigError
from armo_ray.fit.labelled import LabelJob, scaled_labels
from armo_ray.outputs.hidden import Hidden


def job_for(*names: str, scale: tuple[float, float]) -> LabelJob:
    return LabelJob(names, (scale,) * len(names), None, 2, 2, 0.0, 0, "")


def rows_with(labels: list[float]) -> Hidden:
    kind = pa.struct([("q", pa.float32())])
    ids = [f"r:{i}:0" for i in range(len(labels))]
    table = pa.table({"row_id": ids, "labels": pa.array([{"q": label} for label in labels], kind)})
    states: npt.NDArray[np.float32] = np.zeros((len(labels), 2), np.float32)
    return Hidden(table, states, states[:0], np.empty(0, np.int64))


@pytest.mark.parametrize(("low", "high"), [(0.7, 5.0), (-1.0, 0.1), (0.3, 1.1)])
def test_labels_at_the_ends_of_a_range_are_in_it_whatever_their_digits(low: float, high: float) -> None:
    labels = scaled_labels(job_for("q", scale=(low, high)), rows_with([low, high]))
    assert labels.tolist() == [[0.0], [1.0]]


def test_a_label_outside_its_range_is_named() -> None:
    with pytest.raises(ConfigError, match=r"label q: 5.1 of row r:1:0 is outside its range of 0.7 to 5"):
        scaled_labels(job_for("q", scale=(0.7, 5.0)), rows_with([1.0, 5.1]))
