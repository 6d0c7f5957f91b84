"""A fit from embedded rows to a checkpoint that scores: what it writes, what it refuses, and what it leaves out."""

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from armo_ray.errors import ConfigError
from armo_ray.fit.checkpoint import FittedHead, write_checkpoint
from armo_ray.fit.command import run
from armo_ray.fit.inputs import label_job
from armo_ray.fit.labelled import check_rows, is_tested, sum_all
from armo_ray.fit.options import FitOptions
from armo_ray.fit.pairs import partners
from armo_ray.fit.spans import engine, here, spans_of
from armo_ray.fit.student import Ranked, kendall, measures, poor_order, top_kept
from armo_ray.fit.work import MARK
from armo_ray.fitting.statistics import to_bytes
from armo_ray.measures.agreement import spearman
from armo_ray.model.checkpoint import inspect
from armo_ray.outputs.hidden import Hidden, open_hidden
from armo_ray.storage import lock
from armo_ray.storage.store import Store
from armo_ray.tiny.families import write_family
from tests.support.local import rows_of, score_locally
from tests.support.rated import LABELS, embed_rows, rated_rows, write_rows

FEW = {"test_fraction": 0.2}
BRADLEY_TERRY = FittedHead(
    "bradley-terry", ("reward",), np.random.default_rng(0).normal(size=(1, 64)), np.eye(1)
)


@pytest.fixture(scope="module")
def hidden(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 pairs of 300 prompts, in ten units."""
    return embed_rows(tiny_model, tmp_path_factory.mktemp("rated"), rated_rows(300))


@pytest.fixture(scope="module")
def fitted(hidden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("fitted") / "model"
    fit([hidden], output)
    return output


def fit(outputs: list[Path], output: Path, **options: Any) -> dict[str, Any]:
    """Fit; returns fit.json."""
    given = {"scores": list(map(str, outputs)), "output": str(output), **FEW, **options}
    run(FitOptions.model_validate(given))
    facts: dict[str, Any] = json.loads((output / "fit.json").read_text())
    return facts


def head_of(folder: Path) -> bytes:
    return (folder / "head.safetensors").read_bytes()


def test_what_is_fitted_scores_rows_by_the_facts_of_its_card(
    fitted: Path, hidden: Path, tmp_path: Path
) -> None:
    facts = json.loads((fitted / "fit.json").read_text())
    assert [row["name"] for row in facts["objectives"]] == ["the", "words", "length"]
    rows = rated_rows(40, seed=1, where="new ")
    score_locally(fitted, write_rows(tmp_path / "new.jsonl", rows), tmp_path / "scores")
    scored = rows_of(tmp_path / "scores")
    words = [float(row[f"{r['role']}_words"]) for r in scored for row in [rows[r["source_row"]]]]
    predicted = [r["rewards"]["words"] for r in scored]
    assert np.corrcoef(words, predicted)[0, 1] > 0.8
    weights = facts["gate"]["weights"]
    assert scored[0]["gating"] == pytest.approx({**weights, "length": 0}, abs=1e-6)
    assert list(scored[0]["rewards"]) == ["the", "words", "length"]


def test_fit_json_and_card_tell_of_data_and_held_out_prompts(fitted: Path, hidden: Path) -> None:
    facts, text = json.loads((fitted / "fit.json").read_text()), (fitted / "README.md").read_text()
    assert facts["backbone"]["fingerprint"] in text
    assert facts["data"] == [{"output": str(hidden), "use": "labels and pairs", "rows": 600, "units": 10}]
    assert facts["rows"]["read"] == 600
    assert facts["rows"]["fitted"] == 2 * facts["pairs"]["fitted"]
    assert facts["rows"]["tested"] == 2 * facts["pairs"]["tested"] > 0
    assert facts["masks"] == [{"labels": ["the", "words", "length"], "rows": facts["rows"]["fitted"]}]
    assert all(row["r2"] > 0.1 and row["held_out"]["r2"] > 0.1 for row in facts["objectives"])
    assert all(abs(row["after"]) < 0.01 for row in facts["penalties"])
    names = [row["name"] for row in facts["held_out"]]
    assert names[0] == "longer answer"
    assert names[-1] == "Bradley-Terry head"
    for name in (*names, "calibration.svg", "objectives.svg", "Held-out pairs", "released ArmoRM's code"):
        assert name in text
    assert all((fitted / name).read_text().startswith("<svg") for name in facts["figures"])
    assert not fitted.with_name("model.work").exists()


@pytest.mark.nightly
def test_one_reward_is_fitted_to_pairs_without_labels(tiny_model: Path, tmp_path: Path) -> None:
    rows = rated_rows(250)
    outputs = [embed_rows(tiny_model, tmp_path / "in", rows, label={})]
    facts = fit(outputs, tmp_path / "model", head="bradley-terry")
    model = inspect(str(tmp_path / "model"))
    assert (model.family.name, model.reward_names) == ("classifier", ("reward",))
    longest, own = facts["held_out"]
    assert own["accuracy"] > longest["accuracy"]
    with pytest.raises(ConfigError, match="it holds no labels: run armo-ray embed with --label"):
        fit(outputs, tmp_path / "other")


def test_the_prompts_that_are_tested_are_the_same_for_labels_and_for_pairs(
    hidden: Path, tmp_path: Path
) -> None:
    facts = fit([hidden], tmp_path / "model", pairs=[str(hidden)], gate="constant")
    assert [row["use"] for row in facts["data"]] == ["labels", "pairs"]
    assert facts["rows"]["tested"] == 2 * facts["pairs"]["tested"]


def test_equal_weights_are_measured_on_pairs_and_one_reward_has_no_figure_of_correlations(
    hidden: Path, tmp_path: Path
) -> None:
    given = {"objective": ["the"], "verbosity": "none"}
    facts = fit([hidden], tmp_path / "model", pairs=[str(hidden)], gate="uniform", **given)
    assert facts["gate"] == {
        **facts["gate"],
        "kind": "uniform",
        "beta": None,
        "weights": {"the": pytest.approx(1)},
    }
    assert facts["pairs"]["used"] == 300
    assert facts["held_out"][1]["name"] == "equal weights"
    assert facts["held_out"][1]["accuracy"] > 0.6
    assert "objectives.svg" not in (tmp_path / "model" / "README.md").read_text()
    assert facts["figures"] == ["calibration.svg"]


def test_pairs_of_test_prompts_alone_are_fitted_to_by_no_gate(
    hidden: Path, tiny_model: Path, tmp_path: Path
) -> None:
    prompts = {row["source_row"]: row["prompt_id"] for row in rows_of(hidden, "hidden")}
    own = is_tested([prompts[i] for i in range(300)], FEW["test_fraction"], 0)
    rows = rated_rows(300)
    tested = embed_rows(tiny_model, tmp_path, [rows[i] for i in np.flatnonzero(own)])
    facts = fit([hidden], tmp_path / "model", pairs=[str(tested)])
    count = facts["pairs"]["used"]
    assert facts["pairs"]["fitted"] == 0
    assert facts["gate"]["why"] == f"There were no pairs to fit weights to: all {count} are of test prompts."


def test_sums_go_on_from_what_a_stopped_command_had_added_and_come_to_the_same_bits(
    hidden: Path, tmp_path: Path
) -> None:
    opened = open_hidden([str(hidden)])
    options = FitOptions.model_validate({"scores": [str(hidden)], "output": str(tmp_path / "model")})
    spans = spans_of(opened, 128)
    sums = []
    for work, stops in ((tmp_path / "whole", []), (tmp_path / "stopped", [2, 4])):
        job = label_job(options, opened, str(work))
        with engine("local", str(work)) as run_tasks:
            for stop in stops:
                sum_all(job, spans[:stop], run_tasks)
            sums.append(sum_all(job, spans, run_tasks))
        assert [path.name for path in work.iterdir()] == ["sums.npz"]
    assert len(spans) == 5
    assert [total.rows for total in sums] == [600, 600]
    assert to_bytes(sums[0].sums) == to_bytes(sums[1].sums)


def test_sums_are_the_same_bits_whether_tasks_of_a_cluster_write_them_to_files_or_not(
    hidden: Path, tmp_path: Path
) -> None:
    opened = open_hidden([str(hidden)])
    options = FitOptions.model_validate({"scores": [str(hidden)], "output": str(tmp_path / "model")})
    spans = spans_of(opened, 64)
    written: list[str] = []

    def as_on_a_cluster(function: Any, tasks: Any) -> list[Any]:
        results = [pickle.loads(pickle.dumps(function))(task) for task in tasks]
        written.extend(path.name for path in work.glob("sums-*"))
        return results

    sums = []
    for work, run_tasks in ((tmp_path / "here", here), (tmp_path / "there", as_on_a_cluster)):
        sums.append(sum_all(label_job(options, opened, str(work)), spans, run_tasks))
        assert [path.name for path in work.iterdir()] == ["sums.npz"]
    assert len(set(written)) == len(spans) == 10
    assert to_bytes(sums[0].sums) == to_bytes(sums[1].sums)


def test_spans_are_as_large_as_the_sums_over_them(hidden: Path) -> None:
    opened = open_hidden([str(hidden)])
    many = replace(opened, units=opened.units * 250, size=4096)  # 150,000 rows
    assert [span.rows for span in spans_of(many, None)] == [81_920, 68_080]
    assert spans_of(replace(many, size=64), None)[0].rows == 32_784  # whole units


def test_a_command_that_was_killed_as_it_ended_ends_when_it_is_run_again(
    hidden: Path, fitted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head, left = head_of(fitted), fitted.with_name("model.work")
    left.mkdir()
    for name in (MARK, "sums.npz"):
        (left / name).touch()
    caplog.set_level(logging.INFO)
    fit([hidden], fitted)
    assert "already complete: a fit of the same inputs and options" in caplog.text
    assert head_of(fitted) == head
    assert not left.exists()


def test_a_part_that_is_read_twice_is_noticed(hidden: Path, tmp_path: Path) -> None:
    (first, *_) = spans_of(open_hidden([str(hidden)]), 64)
    check_rows(first, 64)
    with pytest.raises(ConfigError, match="128 rows were read of 1 units, but its manifest counts 64"):
        check_rows(first, 128)


def test_what_another_fit_left_is_not_gone_on_from(hidden: Path, fitted: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    with pytest.raises(ConfigError):
        fit([hidden], output, max_penalty=1e-9, seed=1)
    assert (tmp_path / "model.work" / "sums.npz").exists()
    fit([hidden], output)
    assert head_of(output) == head_of(fitted)


def test_options_that_are_corrected_after_a_refusal_go_on_from_the_sums(
    hidden: Path, fitted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "model"
    with pytest.raises(ConfigError, match="raise --max-penalty"):
        fit([hidden], output, max_penalty=1e-9)
    caplog.set_level(logging.INFO)
    fit([hidden], output)
    assert "going on from what is done there" in caplog.text
    assert "labels: " not in caplog.text  # no row was added again
    assert head_of(output) == head_of(fitted)


def test_a_folder_in_which_another_command_fits_is_left_alone(hidden: Path, tmp_path: Path) -> None:
    with (
        lock.held(Store(str(tmp_path / "model.work")), "fit"),
        pytest.raises(ConfigError, match="armo-ray fit"),
    ):
        fit([hidden], tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.nightly
def test_outputs_may_be_fitted_together(tiny_model: Path, tmp_path: Path) -> None:
    outputs = [embed_rows(tiny_model, tmp_path / str(i), rated_rows(100, i, f"{i} ")) for i in range(2)]
    facts = fit(outputs, tmp_path / "model", gate="uniform", verbosity="none")
    assert [row["rows"] for row in facts["data"]] == [200, 200]
    assert facts["rows"]["read"] == 400
    assert facts["gate"]["weights"] == pytest.approx({"the": 0.5, "words": 0.5})


def test_what_the_states_were_read_with_is_told_and_in_the_command_of_the_card(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"special_tokens": "reference", "tool_calls": "text"}
    rows = embed_rows(tiny_model, tmp_path / "in", rated_rows(100), **options)
    facts = fit([rows], tmp_path / "model", gate="uniform", verbosity="none")
    assert facts["reading"] == ["--special-tokens reference", "--tool-calls text"]
    assert "read with --special-tokens reference --tool-calls text: score with it, too" in caplog.text
    card = (tmp_path / "model/README.md").read_text()
    assert "--model DIR --special-tokens reference --tool-calls text\n```" in card


@pytest.mark.nightly
def test_equal_texts_and_pairs_in_both_directions_are_dropped_counted_and_named(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rated_rows(200)
    swapped = {
        **rows[5],
        "chosen": rows[5]["rejected"],
        "rejected": rows[5]["chosen"],
        "rejected_the": rows[5]["chosen_the"],
        "chosen_the": rows[5]["rejected_the"],
    }
    same = {**rows[7], "rejected": rows[7]["chosen"]}
    output = embed_rows(tiny_model, tmp_path, [*rows, swapped, same])
    facts = fit([output], tmp_path / "model", gate="constant")
    assert (facts["pairs"]["dropped_equal_texts"], facts["pairs"]["dropped_both_directions"]) == (1, 2)
    assert facts["pairs"]["used"] == 199
    named = facts["pairs"]["dropped"]
    assert [name.split(":")[1] for name in named["equal_texts"]] == ["201"]
    assert [name.split(":")[1] for name in named["both_directions"]] == ["5", "200"]
    assert "2 pairs dropped: both directions, such as that of" in caplog.text


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too-few": (
        {"allow_few": False},
        r"objective the: \d+ rows with a label, fewer than the 64 hidden units",
    ),
    "scale": ({"scale": {"the": "0:1"}}, r"label the: [23] of row \S+ is outside its range of 0 to 1"),
    "no-such-label": ({"objective": ["thee"]}, "objective thee: no such label in .*the"),
    "scale-of-none": (
        {"objective": ["the"], "scale": {"words": "0:9"}},
        "--scale words: it is none of the obj",
    ),
    "verbosity": ({"verbosity": "word"}, "--verbosity word: it is neither length nor none nor an objective"),
    "verbosity-alone": (
        {"objective": ["words"], "verbosity": "words"},
        "--verbosity words: it is the only objective, .*: give another --objective, or --verbosity none",
    ),
    "penalty": (
        {"max_penalty": 1e-6},
        r"objective \w+: its rank correlation with verbosity is .* raise --max-pen",
    ),
    "gate-of-one": (
        {"objective": ["words"], "gate": "constant"},
        "--gate constant: words is the only reward in the score, whose weight is 1",
    ),
    "network": ({"gate": "mlp"}, r"--gate mlp: \d+ pairs to fit, and it needs 1000"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_fitted_is_refused(
    options: dict[str, Any], message: str, hidden: Path, tiny_model: Path, tmp_path: Path
) -> None:
    if options == {"allow_few": False}:
        hidden = embed_rows(tiny_model, tmp_path, rated_rows(20))
    with pytest.raises(ConfigError, match=message):
        fit([hidden], tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda i: None, "objective odd: none of the 120 rows has a label: leave it out"),
        (lambda i: 3.0, r"objective odd: all 120 labels are 3: there is nothing to learn"),
        (lambda i: float(i * 7919 % 13), "objective odd: cross-validated R2 is -.*no better than their mean"),
    ],
    ids=["all-null", "constant", "noise"],
)
def test_a_label_from_which_nothing_can_be_learned_is_refused(
    values: Any, message: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [{**row, "odd": [values(i), values(i + 1)]} for i, row in enumerate(rated_rows(60))]
    labels = {"odd": "chosen_odd,rejected_odd"}
    for row in rows:
        row["chosen_odd"], row["rejected_odd"] = row.pop("odd")
    output = embed_rows(tiny_model, tmp_path, rows, label={**LABELS, **labels})
    with pytest.raises(ConfigError, match=message):
        fit([output], tmp_path / "model", test_fraction=0, allow_few=True)


def test_hidden_states_of_two_models_are_refused(hidden: Path, tmp_path: Path) -> None:
    from armo_ray.tiny.armorm import write_tiny_model

    write_tiny_model(tmp_path / "other", seed=1)
    other = embed_rows(tmp_path / "other", tmp_path, rated_rows(20))
    with pytest.raises(ConfigError, match="model_fingerprint is"):
        fit([hidden, other], tmp_path / "model")
    with pytest.raises(ConfigError, match="of different runs cannot be used together: model_fingerprint"):
        fit([hidden], tmp_path / "model", pairs=[str(other)])
    with pytest.raises(ConfigError, match=r"its fingerprint is .*: leave --model out, or give the files of "):
        fit([hidden], tmp_path / "model", model=str(tmp_path / "other"))


def test_an_output_with_hidden_states_is_needed_and_room_for_the_checkpoint(
    hidden: Path, fitted: Path, scored_pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="holds no hidden states: make it with armo-ray embed"):
        fit([scored_pairs], tmp_path / "model")
    with pytest.raises(ConfigError, match="exists and is not an empty directory"):
        fit([hidden], fitted, seed=1)
    with pytest.raises(ConfigError, match="is written to a directory of this machine"):
        run(FitOptions.model_validate({"scores": [str(hidden)], "output": "s3://bucket/model"}))


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["armorm", "classifier"])
def test_a_student_learns_the_rewards_and_gates_of_a_larger_model(
    family: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = rated_rows(250)
    output = embed_rows(tiny_model, tmp_path, rows)
    teacher = tiny_model
    if family == "classifier":
        teacher = tmp_path / "teacher"
        write_checkpoint(inspect(str(tiny_model)), BRADLEY_TERRY, teacher, {})
    score_locally(teacher, tmp_path / "rows.jsonl", tmp_path / "scores")
    facts = fit([output], tmp_path / "model", target_scores=str(tmp_path / "scores"))
    assert facts["gate"]["kind"] == {"armorm": "teacher", "classifier": "teacher-constant"}[family]
    ranks = facts["teacher"]["agreement"]
    assert ranks["held-out rows"] == facts["rows"]["tested"]
    least = {"armorm": 0.85, "classifier": 0.999}[family]  # its gate has 200 prompts to learn from
    assert ranks["Spearman"] > least  # the backbone is the teacher's own
    assert ranks["pairs of one prompt in the same order"] > 0.8
    assert "share of the best 10% that is kept" in (tmp_path / "model" / "README.md").read_text()
    new = write_rows(tmp_path / "new.jsonl", rated_rows(30, seed=1, where="new "))
    scores = []
    for model in (teacher, tmp_path / "model"):
        score_locally(model, new, tmp_path / f"new-{model.name}")
        scores.append([row["score"] for row in rows_of(tmp_path / f"new-{model.name}")])
    assert (spearman(*map(np.array, scores)) or 0) > least


def test_weights_of_a_larger_model_that_are_the_same_for_all_prompts_are_copied(
    fitted: Path, hidden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score_locally(fitted, hidden.with_name("rows.jsonl"), tmp_path / "scores")
    facts = fit([hidden], tmp_path / "model", target_scores=str(tmp_path / "scores"))
    weights = json.loads((fitted / "fit.json").read_text())["gate"]["weights"]
    assert facts["gate"]["kind"] == "teacher-constant"
    assert facts["gate"]["weights"] == pytest.approx({**weights, "length": 0}, abs=1e-6)
    assert facts["teacher"]["agreement"]["Spearman"] > 0.99
    shown = capsys.readouterr().out
    assert "order of held-out rows" in shown
    assert "is not that of the larger model" not in shown
    assert "for `words`: +1 `words` -" in (tmp_path / "model" / "README.md").read_text()


def test_an_order_that_is_not_the_larger_models_is_told() -> None:
    rng = np.random.default_rng(0)
    a, prompts = rng.normal(size=60), np.arange(60).astype(np.uint64)
    found = measures(Ranked(a, a + rng.normal(size=60), prompts))
    assert "is not that of the larger model" in poor_order(found)
    assert "share of the best 10% that is kept" in found
    assert "share of the best 1% that is kept" not in found  # a row
    assert poor_order(measures(Ranked(a, a, prompts))) == ""


def test_scores_of_other_rows_teach_nothing(hidden: Path, scored_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of its rows is one of the 600 that were embedded"):
        fit([hidden], tmp_path / "model", target_scores=str(scored_pairs))


def test_agreement_is_measured_by_ranks_pairs_and_the_best_that_are_kept() -> None:
    a = np.arange(10.0)
    assert kendall(a, a) == 1
    assert kendall(a, -a) == -1
    assert kendall(np.array([0.0, 1, 2]), np.array([0.0, 2, 1])) == pytest.approx(1 / 3)
    assert kendall(a, np.ones(10)) is None
    assert top_kept(a, np.array([9.0, *a[1:]]), 0.2) == 0.5


@pytest.mark.nightly
def test_a_network_weights_rewards_by_the_prompt_and_never_the_one_that_only_lowers_others(
    tiny_model: Path, tmp_path: Path
) -> None:
    output = embed_rows(tiny_model, tmp_path, rated_rows(1300))
    facts = fit([output], tmp_path / "model", gate="mlp", test_fraction=0.1)
    assert facts["gate"]["kind"] == "mlp"
    assert "gates.svg" in facts["figures"]
    assert [row["name"] for row in facts["held_out"]][2:5] == ["equal weights", "constant weights", "network"]
    score_locally(tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "scores")
    scored = rows_of(tmp_path / "scores")
    gating = np.array([[row["gating"][name] for name in ("the", "words", "length")] for row in scored])
    assert gating.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert gating[:, 2].max() < 1e-6
    assert gating[:, 0].std() > 1e-4
    auto = fit([output], tmp_path / "auto", test_fraction=0.1)
    assert "Chosen by" in auto["gate"]["why"]
    assert "network" in [row["name"] for row in auto["held_out"]]


def test_every_chosen_answer_is_paired_with_every_rejected_one_of_its_row() -> None:
    roles = ["chosen", "rejected", "chosen", "rejected", "response", "chosen"]
    table = pa.table({"source": ["a"] * 6, "source_row": [1, 1, 1, 1, 1, 2], "role": roles})
    none = np.empty((0, 4), np.float32)
    chosen, rejected, alone = partners(
        Hidden(table, np.zeros((6, 4), np.float32), none, np.empty(0, np.int64))
    )
    assert list(zip(chosen.tolist(), rejected.tolist(), strict=True)) == [(0, 1), (0, 3), (2, 1), (2, 3)]
    assert alone == 2


@pytest.mark.nightly
def test_states_kept_beside_scores_are_fitted_as_those_of_embed_are(
    hidden: Path, fitted: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shard = write_rows(tmp_path / "rows.jsonl", rated_rows(300))
    score_locally(tiny_model, shard, tmp_path / "scores", keep_hidden=True, label=LABELS, unit_rows=64)
    fit([tmp_path / "scores"], tmp_path / "model")
    rows = write_rows(tmp_path / "new.jsonl", rated_rows(10, seed=1, where="new "))
    scores = []
    for model in (fitted, tmp_path / "model"):
        score_locally(model, rows, tmp_path / f"new-{model.parent.name}")
        scores.append([row["score"] for row in rows_of(tmp_path / f"new-{model.parent.name}")])
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)  # folds and test prompts are the same


@pytest.mark.nightly
def test_a_language_model_of_another_kind_becomes_a_reward_model(tmp_path: Path) -> None:
    write_family(tmp_path / "lm", "token-logit", "qwen2")
    output = embed_rows(tmp_path / "lm", tmp_path, rated_rows(250))
    facts = fit([output], tmp_path / "model", model=str(tmp_path / "lm"))
    assert facts["dropped_tensors"] == ["lm_head.weight"]
    assert "Only armo-ray loads this checkpoint" in (tmp_path / "model" / "README.md").read_text()
    score_locally(tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "scores")
    scored, rows = rows_of(tmp_path / "scores"), rated_rows(250)
    words = [rows[r["source_row"]][f"{r['role']}_words"] for r in scored]
    assert np.corrcoef(words, [r["rewards"]["words"] for r in scored])[0, 1] > 0.8


def test_without_pairs_the_card_tells_of_labels_alone_and_of_weights_that_are_not_equal_in_effect(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"prompt": row["prompt"], "response": row[side]} | {k: row[f"{side}_{k}"] for k in ("the", "words")}
        for row in rated_rows(150)
        for side in ("chosen", "rejected")
    ]
    output = embed_rows(tiny_model, tmp_path, rows, label={"the": "the", "words": "words"})
    told = "Equal weights of rewards whose spread is not equal: words"
    facts = fit([output], tmp_path / "model", verbosity="none")
    text = (tmp_path / "model" / "README.md").read_text()
    assert [row["use"] for row in facts["data"]] == ["labels"]
    assert told in caplog.text
    assert told in text
    assert "revision None" not in text
    assert "Held-out pairs" not in text
    scales = {"the": "0:14", "words": "0:14"}
    assert told not in fit([output], tmp_path / "scaled", verbosity="none", scale=scales)["gate"]["why"]
    with pytest.raises(ConfigError, match=r"--scale word: no such label in .*; did you mean words\?"):
        fit([output], tmp_path / "other", scale={"word": "0:1"})


def test_a_fit_that_holds_nothing_out_says_that_it_measures_nothing(
    hidden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit([hidden], tmp_path / "model", test_fraction=0)
    told = "No pair was held out, as the test fraction is 0: nothing tells how often this model is right."
    assert told in capsys.readouterr().out
    assert told in (tmp_path / "model" / "README.md").read_text()


def test_pairs_that_are_too_few_or_none_are_refused(hidden: Path, tiny_model: Path, tmp_path: Path) -> None:
    few = embed_rows(tiny_model, tmp_path / "few", rated_rows(15))
    with pytest.raises(
        ConfigError, match=r"1\d pairs to fit to, .* a head on hidden states needs 100; add pairs"
    ):
        fit([few], tmp_path / "model", head="bradley-terry")
    with pytest.raises(ConfigError, match=r"--gate constant: 1\d pairs to fit, and it needs 20"):
        fit([hidden], tmp_path / "model", gate="constant", pairs=[str(few)])
    facts = fit([hidden], tmp_path / "model", pairs=[str(few)])
    assert facts["gate"]["kind"] == "uniform"
    assert "pairs are too few to fit weights to: 20 are needed" in facts["gate"]["why"]
    rows = [{"prompt": row["prompt"], "response": row["chosen"]} for row in rated_rows(15)]
    alone = embed_rows(tiny_model, tmp_path / "alone", rows, label={})
    with pytest.raises(ConfigError, match="no row has both a chosen and a rejected answer"):
        fit([hidden], tmp_path / "other", pairs=[str(alone)])


def test_states_partitioned_by_role_are_paired(tiny_model: Path, tmp_path: Path) -> None:
    output = embed_rows(tiny_model, tmp_path, rated_rows(150), partition_by=["role"])
    facts = fit([output], tmp_path / "model", head="bradley-terry")
    assert facts["pairs"]["used"] == 150
