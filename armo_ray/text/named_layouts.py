"""The table of named layouts: the columns that identify a public data set's rows, and the role of each column."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from armo_ray.text.input_columns import InputColumns
from armo_ray.text.layouts import OPTIONAL
from armo_ray.text.paths import ALL, root_of, steps_of


class Declared(NamedTuple):
    """A label of a public data set: where its rows hold it, and the range of its values. See `labels.Label`."""

    columns: tuple[str, ...]
    low: float
    high: float
    where: tuple[str, str] | None = None
    match: tuple[str, str] | None = None


def _rated(low: float, high: float, **columns: str) -> dict[str, Declared]:
    """Labels of one range, by name; two columns are separated by a comma."""
    return {name: Declared(tuple(column.split(",")), low, high) for name, column in columns.items()}


@dataclass(frozen=True)
class Named:
    """One layout.

    columns: maps a column role to a path, as in a Layout. An input fits if it has these paths and those in `needs`.
    optional: more columns, read if the input has them.
    winner: maps a value of the role winner to first, second, tie or skip.
    aside: columns that repeat what is read, or do not belong to the conversation.
    source: where the columns were looked up; not checked if `verified` is false.
    recognized: whether the layout is chosen by columns alone; otherwise only --layout chooses it, because a general
        layout reads the same rows.
    refused: why such rows cannot be scored, or empty.
    labels: numbers that were given to the responses; those that an input lacks are not read.
    """

    name: str
    kind: str
    columns: Mapping[str, str]
    example: Mapping[str, Any]
    source: str
    verified: bool = True
    needs: tuple[str, ...] = ()
    optional: Mapping[str, str] = field(default_factory=dict)
    winner: Mapping[str, str] = field(default_factory=dict)
    joint: str = "\n"
    shape: str | None = None
    aside: tuple[str, ...] = ()
    recognized: bool = True
    refused: str = ""
    note: str = ""
    labels: Mapping[str, Declared] = field(default_factory=dict)

    @property
    def required(self) -> tuple[str, ...]:
        """The paths that an input must have."""
        return tuple(dict.fromkeys((*self.columns.values(), *self.needs)))


def has(available: InputColumns, path: str) -> bool:
    """Whether an input has a path."""
    steps = steps_of(path)
    if path in available.names or steps is None:
        return path in available.names
    shown = root_of(path) + "".join(
        ALL if step == ALL or isinstance(step, int) else f".{step}" for step in steps
    )
    return shown in available.paths


def lacking(named: Named, available: InputColumns, read: InputColumns) -> list[str]:
    """The paths that a layout requires, but that are not in an input, or in none of the columns that may be read."""
    needed = [path for role, path in named.columns.items() if not _is_optional(role, named)]
    missing = [path for path in named.required if not has(available, path)]
    return list(dict.fromkeys((*missing, *(path for path in needed if not has(read, path)))))


def _is_optional(role: str, named: Named) -> bool:
    """Whether rows can be read without this role. Most functions of `shape` need the prompt."""
    return role in OPTIONAL[named.kind] and (role != "prompt" or named.shape is None)


def fitting(available: InputColumns, read: InputColumns) -> list[Named]:
    """The recognized layouts that can be read, without those that require only a subset of another's columns.

    `available` are the columns of the input, by which its data set is recognized, `read` those that may be read.
    """
    fits = [n for n in NAMED.values() if n.recognized and not lacking(n, available, read)]
    return [n for n in fits if not any(set(n.required) < set(other.required) for other in fits)]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


_BY_STRENGTH = {
    **dict.fromkeys(("-3", "-2", "-1"), "first"),
    "0": "tie",
    **dict.fromkeys(("1", "2", "3"), "second"),
}
_BY_MODEL = {
    "model_a": "first",
    "model_b": "second",
    **dict.fromkeys(("tie", "tie (bothbad)", "both_bad", "bothbad"), "tie"),
}
_HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_ASPECTS = ("instruction_following", "truthfulness", "honesty", "helpfulness")
_CODE = ("complexity", "style", "explanation", "instruction-following", "readability")
_OBJECTIVES = (
    *(f"helpsteer-{name}" for name in _HELPSTEER),
    *(f"ultrafeedback-{name}" for name in ("overall_score", *_ASPECTS)),
    *("beavertails-is_safe", "prometheus-score", "argilla-overall_quality", "argilla-judge_lm"),
    *(f"code-{name}" for name in _CODE),
)
_Q, _GOOD, _BAD = "Name a river in Ireland.", "The Shannon.", "The Box."

_TABLE = (
    Named(
        "alpaca",
        "rollouts",
        {"prompt": "instruction", "input": "input", "response": "output"},
        {
            "instruction": "Sum up in three words.",
            "input": "The ferry came late.",
            "output": "Ferry was late.",
        },
        "LLaMA-Factory data/README.md; ms-swift AlpacaPreprocessor",
        optional={"history": "history"},
        note="the prompt is instruction, a newline and input, if there is one; history becomes the turns before it",
    ),
    Named(
        "dolly",
        "rollouts",
        {"prompt": "instruction", "input": "context", "response": "response"},
        {
            "instruction": "Who was late?",
            "context": "The ferry came late.",
            "response": "The ferry.",
            "category": "closed_qa",
        },
        "databricks-dolly-15k, as ms-swift's Dolly15kPreprocessor reads it",
        joint="\n\n",
        note="the prompt is instruction, a blank line and context, in the order of Databricks' own template",
    ),
    Named(
        "llama-factory-ranking",
        "preference",
        {"prompt": "instruction", "input": "input", "chosen": "chosen", "rejected": "rejected"},
        {"instruction": _Q, "input": "In the west.", "chosen": _GOOD, "rejected": _BAD},
        "LLaMA-Factory data/README.md",
        optional={"history": "history"},
    ),
    Named(
        "sharegpt-ranking",
        "preference",
        {"prompt": "conversations", "chosen": "chosen", "rejected": "rejected"},
        {
            "conversations": [{"from": "human", "value": _Q}],
            "chosen": {"from": "gpt", "value": _GOOD},
            "rejected": {"from": "gpt", "value": _BAD},
        },
        "LLaMA-Factory data/README.md",
        needs=("chosen.value", "rejected.value"),
    ),
    Named(
        "sharegpt-functions",
        "messages",
        {"messages": "conversations", "tools": "tools"},
        {
            "conversations": [{"from": "human", "value": _Q}, {"from": "gpt", "value": _GOOD}],
            "tools": "[]",
        },
        "LLaMA-Factory data/README.md",
        recognized=False,
    ),
    Named(
        "ultrafeedback",
        "rollouts",
        {"prompt": "instruction", "responses": "completions[].response"},
        {
            "source": "s",
            "instruction": _Q,
            "models": ["m1", "m2"],
            "completions": [
                {
                    "model": "m1",
                    "response": _GOOD,
                    "overall_score": 8.0,
                    "annotations": {name: {"Rating": "5"} for name in _ASPECTS},
                },
                {
                    "model": "m2",
                    "response": _BAD,
                    "overall_score": 2.0,
                    "annotations": {name: {"Rating": "N/A"} for name in _ASPECTS},
                },
            ],
        },
        "TRL examples/datasets/ultrafeedback.py; readers of its ratings, which are text",
        labels=_rated(1, 10, overall_score="completions[].overall_score")
        | _rated(1, 5, **{name: f"completions[].annotations.{name}.Rating" for name in _ASPECTS}),
        note="the system prompt of each completion is not read, as in UltraFeedback's own use",
    ),
    Named(
        "ultrafeedback-binarized",
        "preference",
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        {
            "prompt": _Q,
            "prompt_id": "1",
            "chosen": [_user(_Q), _answer(_GOOD)],
            "rejected": [_user(_Q), _answer(_BAD)],
            "messages": [_user(_Q), _answer(_GOOD)],
            "score_chosen": 8.0,
            "score_rejected": 2.0,
        },
        "the card of HuggingFaceH4/ultrafeedback_binarized",
        needs=("messages", "score_chosen", "score_rejected"),
        aside=("messages",),
        labels=_rated(1, 10, overall_score="score_chosen,score_rejected"),
    ),
    Named(
        "nectar",
        "rollouts",
        {"prompt": "prompt", "responses": "answers[].answer"},
        {
            "prompt": f"\n\nHuman: {_Q}\n\nAssistant: ",
            "answers": [
                {"answer": _GOOD, "model": "m1", "rank": 1.0},
                {"answer": _BAD, "model": "m2", "rank": 2.0},
            ],
            "turns": 1,
        },
        "open-instruct scripts/data/preferences/nectar.py",
        needs=("answers[].rank",),
    ),
    Named(
        "helpsteer2",
        "rollouts",
        {"prompt": "prompt", "response": "response"},
        {"prompt": _Q, "response": _GOOD, **dict.fromkeys(_HELPSTEER, 4)},
        "open-instruct scripts/data/preferences/helpsteer2.py; the cards of nvidia/HelpSteer and HelpSteer2",
        needs=("helpfulness", "correctness", "coherence"),
        shape="extra_id_turns",
        labels=_rated(0, 4, **{name: name for name in _HELPSTEER}),
    ),
    Named(
        "helpsteer2-preference",
        "pairs",
        {
            "prompt": "prompt",
            "first": "response_1",
            "second": "response_2",
            "winner": "preference_strength",
        },
        {
            "prompt": f"Hello.\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\n{_Q}",
            "response_1": _BAD,
            "response_2": _GOOD,
            "preference_strength": 2,
        },
        "RLHFlow decision_tree/get_embeddings.py and others that read data_dir='preference'",
        winner=_BY_STRENGTH,
        shape="extra_id_turns",
    ),
    Named(
        "helpsteer3",
        "pairs",
        {
            "prompt": "context",
            "first": "response1",
            "second": "response2",
            "winner": "overall_preference",
        },
        {"context": [_user(_Q)], "response1": _GOOD, "response2": _BAD, "overall_preference": -3},
        "NeMo-RL nemo_rl/data/datasets/preference_datasets/helpsteer3.py",
        winner=_BY_STRENGTH,
    ),
    Named(
        "pku-saferlhf",
        "pairs",
        {
            "prompt": "prompt",
            "first": "response_0",
            "second": "response_1",
            "winner": "better_response_id",
        },
        {
            "prompt": _Q,
            "response_0": _BAD,
            "response_1": _GOOD,
            "better_response_id": 1,
            "safer_response_id": 0,
            "is_response_0_safe": True,
            "is_response_1_safe": False,
            "response_0_severity_level": 0,
            "response_1_severity_level": 3,
        },
        "open-instruct and Safe-RLHF's dataset classes",
        winner={"0": "first", "1": "second"},
        note="the better response is chosen; with --column winner=safer_response_id, the safer one",
        labels=_rated(0, 1, is_safe="is_response_0_safe,is_response_1_safe")
        | _rated(0, 3, severity_level="response_0_severity_level,response_1_severity_level"),
    ),
    Named(
        "beavertails",
        "rollouts",
        {"prompt": "prompt", "response": "response"},
        {
            "prompt": _Q,
            "response": _GOOD,
            "category": {"terrorism,organized_crime": False},
            "is_safe": True,
        },
        "readers of PKU-Alignment/BeaverTails",
        needs=("category", "is_safe"),
        labels=_rated(0, 1, is_safe="is_safe"),
    ),
    Named(
        "prometheus-feedback",
        "rollouts",
        {"prompt": "orig_instruction", "response": "orig_response"},
        {
            "instruction": "###Task Description: ...",
            "output": "Feedback: ... [RESULT] 4",
            "orig_instruction": _Q,
            "orig_response": _GOOD,
            "orig_criteria": "Is the answer correct?",
            "orig_reference_answer": _GOOD,
            "orig_feedback": "It is.",
            "orig_score": "4",
        },
        "remembered: prometheus-eval/Feedback-Collection",
        verified=False,
        needs=("orig_score",),
        aside=("instruction", "input", "output"),
        note="instruction and output are the prompt of a judge and its answer",
        labels=_rated(1, 5, score="orig_score"),
    ),
    Named(
        "code-ultrafeedback",
        "rollouts",
        {"prompt": "instruction", "responses": "responses[].response"},
        {
            "instruction": _Q,
            "preference": "style",
            "models": ["m1", "m2"],
            "responses": [{"model": "m1", "response": _GOOD}, {"model": "m2", "response": _BAD}],
            "annotations": [
                {"model": "m2", "rating": "1", "rationale": "r"},
                {"model": "m1", "rating": "5", "rationale": "r"},
            ],
        },
        "the card of coseal/CodeUltraFeedback; martin-wey/CodeUltraFeedback src/utils/data_processing.py",
        needs=("preference", "annotations[].model", "annotations[].rating"),
        note="preference names what was rated, which is the label; ratings are in another order than responses",
        labels={
            name.replace("-", "_"): Declared(
                ("annotations[].rating",),
                1,
                5,
                ("preference", name),
                ("responses[].model", "annotations[].model"),
            )
            for name in _CODE
        },
    ),
    Named(
        "armorm-multi-objective",
        "messages",
        {"messages": "messages"},
        {
            "dataset": "helpsteer",
            "messages": [_user(_Q), _answer(_GOOD)],
            **{name: 0.9 if name.startswith("helpsteer") else None for name in _OBJECTIVES},
        },
        "RLHFlow/RLHF-Reward-Modeling armo-rm/stage-1_prepare.py (RLHFlow/ArmoRM-Multi-Objective-Data-v0.1)",
        needs=("helpsteer-helpfulness", "ultrafeedback-overall_score", "beavertails-is_safe"),
        note="a row has the ratings of the data set that it comes from, scaled to 0-1, and nulls for the others",
        labels=_rated(0, 1, **{name.replace("-", "_"): name for name in _OBJECTIVES}),
    ),
    Named(
        "lmsys-arena",
        "pairs",
        {"first": "conversation_a", "second": "conversation_b", "winner": "winner"},
        {
            "model_a": "m1",
            "model_b": "m2",
            "winner": "model_b",
            "conversation_a": [_user(_Q), _answer(_BAD)],
            "conversation_b": [_user(_Q), _answer(_GOOD)],
        },
        "readers of lmsys/chatbot_arena_conversations (33k) and lmarena-ai/arena-human-preference-140k",
        winner=_BY_MODEL,
        note="rows where both responses are bad count as ties",
    ),
    Named(
        "lmsys-arena-55k",
        "pairs",
        {
            "prompt": "prompt",
            "first": "response_a",
            "second": "response_b",
            "first_rating": "winner_model_a",
            "second_rating": "winner_model_b",
        },
        {
            "prompt": '["Hello.", "Name a river in Ireland."]',
            "response_a": '["Hello!", "The Shannon."]',
            "response_b": '["Hi!", "The Box."]',
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
        "readers of the Kaggle competition lmsys-chatbot-arena",
        shape="interleaved",
        note="the turns are JSON lists of text",
    ),
    Named(
        "arena-pairs",
        "pairs",
        {"prompt": "prompt", "first": "response_a", "second": "response_b", "winner": "winner"},
        {"prompt": _Q, "response_a": _GOOD, "response_b": _BAD, "winner": "model_a"},
        "readers of the Kaggle competition wsdm-cup-multilingual-chatbot-arena",
        winner=_BY_MODEL,
    ),
    Named(
        "shp",
        "pairs",
        {"prompt": "history", "first": "human_ref_A", "second": "human_ref_B", "winner": "labels"},
        {"history": _Q, "human_ref_A": _GOOD, "human_ref_B": _BAD, "labels": 1},
        "stanfordnlp/SHP's card; Open-Assistant rank_datasets.py",
        winner={"1": "first", "0": "second"},
    ),
    Named(
        "webgpt",
        "pairs",
        {
            "prompt": "question.full_text",
            "first": "answer_0",
            "second": "answer_1",
            "first_rating": "score_0",
            "second_rating": "score_1",
        },
        {
            "question": {"full_text": _Q},
            "answer_0": _GOOD,
            "answer_1": _BAD,
            "score_0": 0.5,
            "score_1": -0.5,
        },
        "Open-Assistant qa_datasets.py; open-instruct scripts/data/preferences/webgpt.py",
        note="the quotes that a response cites are not read, as in Open-Assistant",
    ),
    Named(
        "summarize-from-feedback",
        "pairs",
        {
            "prompt": "info",
            "first": "summaries[0].text",
            "second": "summaries[1].text",
            "winner": "choice",
        },
        {
            "info": {
                "subreddit": "travel",
                "title": "Late ferry",
                "post": "It came at noon.",
                "article": None,
            },
            "summaries": [{"text": "Ferry late."}, {"text": "No ferry."}],
            "choice": 0,
        },
        "TRL examples/datasets/tldr_preference.py",
        winner={"0": "first", "1": "second"},
        shape="tldr",
        note="the prompt has the form that TRL's script gives it",
    ),
    Named(
        "stack-exchange-paired",
        "preference",
        {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
        {"qid": 1, "question": _Q, "response_j": _GOOD, "response_k": _BAD},
        "the card of lvwerra/stack-exchange-paired",
    ),
    Named(
        "judgelm",
        "pairs",
        {
            "prompt": "question_body",
            "first": "answer1_body",
            "second": "answer2_body",
            "first_rating": "score[0]",
            "second_rating": "score[1]",
        },
        {"question_body": _Q, "answer1_body": _GOOD, "answer2_body": _BAD, "score": [9, 2]},
        "readers of BAAI/JudgeLM-100K",
    ),
    Named(
        "offsetbias",
        "pairs",
        {"prompt": "instruction", "first": "output_1", "second": "output_2", "winner": "label"},
        {"instruction": _Q, "output_1": _GOOD, "output_2": _BAD, "label": 1},
        "readers of NCSOFT/offsetbias",
        winner={"1": "first", "2": "second"},
    ),
    Named(
        "skywork-reward-preference",
        "preference",
        {"chosen": "chosen", "rejected": "rejected"},
        {"chosen": [_user(_Q), _answer(_GOOD)], "rejected": [_user(_Q), _answer(_BAD)], "source": "s"},
        "remembered: Skywork/Skywork-Reward-Preference-80K",
        verified=False,
        recognized=False,
    ),
    Named(
        "tulu-3-preference",
        "preference",
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        {
            "id": "1",
            "source": "s",
            "prompt": _Q,
            "chosen": [_user(_Q), _answer(_GOOD)],
            "rejected": [_user(_Q), _answer(_BAD)],
        },
        "NeMo-RL nemo_rl/data/datasets/preference_datasets/tulu3.py",
        recognized=False,
    ),
    Named(
        "hh-rlhf",
        "preference",
        {"chosen": "chosen", "rejected": "rejected"},
        {
            "chosen": f"\n\nHuman: {_Q}\n\nAssistant: {_GOOD}",
            "rejected": f"\n\nHuman: {_Q}\n\nAssistant: {_BAD}",
        },
        "TRL examples/datasets/hh-rlhf-helpful-base.py",
        recognized=False,
    ),
    Named(
        "distilabel-orca",
        "preference",
        {"system": "system", "prompt": "input", "chosen": "chosen", "rejected": "rejected"},
        {
            "system": "Be brief.",
            "input": _Q,
            "chosen": _GOOD,
            "rejected": _BAD,
            "generations": [_GOOD, _BAD],
        },
        "readers of argilla/distilabel-intel-orca-dpo-pairs, and remembered",
        verified=False,
        needs=("generations",),
        aside=("generations",),
    ),
    Named(
        "distilabel-capybara",
        "preference",
        {"chosen": "chosen", "rejected": "rejected"},
        {
            "conversation": [{"input": _Q, "output": _GOOD}],
            "prompt": _Q,
            "chosen": [_user(_Q), _answer(_GOOD)],
            "rejected": [_user(_Q), _answer(_BAD)],
        },
        "remembered: argilla/distilabel-capybara-dpo-7k-binarized",
        verified=False,
        needs=("conversation", "conversation[].input", "conversation[].output"),
        aside=("conversation", "prompt"),
    ),
    Named(
        "distilabel-math",
        "preference",
        {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
        {"instruction": _Q, "chosen_response": _GOOD, "rejected_response": _BAD, "chosen_rating": 9.0},
        "remembered: argilla/distilabel-math-preference-dpo",
        verified=False,
    ),
    Named(
        "capybara",
        "messages",
        {"messages": "conversation"},
        {"source": "s", "conversation": [{"input": _Q, "output": _GOOD}]},
        "remembered: LDJnr/Capybara",
        verified=False,
        needs=("conversation[].input", "conversation[].output"),
        shape="turn_pairs",
    ),
    Named(
        "ms-swift-conversation",
        "messages",
        {"messages": "conversation"},
        {"system": "Be brief.", "conversation": [{"human": _Q, "assistant": _GOOD}]},
        "ms-swift docs/source_en/Customization/Custom-dataset.md",
        needs=("conversation[].human", "conversation[].assistant"),
        shape="turn_pairs",
    ),
    Named(
        "ms-swift",
        "preference",
        {"chosen": "messages", "rejected": "rejected_response"},
        {"messages": [_user(_Q), _answer(_GOOD)], "rejected_response": _BAD},
        "ms-swift docs/source_en/Customization/Custom-dataset.md",
        shape="swift_rejected",
    ),
    Named(
        "ms-swift-messages",
        "preference",
        {"chosen": "messages", "rejected": "rejected_messages"},
        {"messages": [_user(_Q), _answer(_GOOD)], "rejected_messages": [_user(_Q), _answer(_BAD)]},
        "ms-swift docs/source_en/Customization/Custom-dataset.md",
    ),
    Named(
        "ms-swift-query",
        "preference",
        {"prompt": "query", "chosen": "response", "rejected": "rejected_response"},
        {"query": _Q, "response": _GOOD, "rejected_response": _BAD, "history": [["Hello.", "Hello!"]]},
        "ms-swift docs/source_en/Customization/Custom-dataset.md, but for rejected_response beside query",
        verified=False,
        optional={"history": "history"},
    ),
    Named(
        "oasst-tree",
        "rollouts",
        {"responses": "prompt"},
        {
            "message_tree_id": "1",
            "prompt": {
                "text": _Q,
                "role": "prompter",
                "replies": [
                    {"text": _GOOD, "role": "assistant", "replies": []},
                    {"text": _BAD, "role": "assistant", "replies": []},
                ],
            },
        },
        "Open-Assistant oasst-data/oasst_data/schemas.py",
        needs=("message_tree_id", "prompt.text", "prompt.replies[].text"),
        shape="tree",
        note="every assistant turn in the tree is scored, after the messages that lead to it",
    ),
    Named(
        "glaive",
        "messages",
        {"system": "system", "messages": "chat"},
        {
            "system": "SYSTEM: You are a helpful assistant.",
            "chat": f"USER: {_Q}\n\n\nASSISTANT: {_GOOD} <|endoftext|>\n\n\n",
        },
        "readers of glaiveai/glaive-function-calling-v2",
        shape="glaive",
    ),
    Named(
        "guanaco",
        "messages",
        {"messages": "text"},
        {"text": f"### Human: {_Q}### Assistant: {_GOOD}"},
        "TRL's documentation of the completion-only collator (timdettmers/openassistant-guanaco)",
        shape="guanaco",
        recognized=False,
    ),
    Named(
        "magpie",
        "messages",
        {"messages": "conversations"},
        {
            "uuid": "1",
            "instruction": _Q,
            "response": _GOOD,
            "conversations": [{"from": "human", "value": _Q}, {"from": "gpt", "value": _GOOD}],
        },
        "LLaMA-Factory data/dataset_info.json; instruction and response are remembered",
        verified=False,
        needs=("instruction", "response"),
        aside=("instruction", "response"),
    ),
    Named(
        "magpie-dpo",
        "preference",
        {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
        {
            "uuid": "1",
            "instruction": _Q,
            "chosen": [_user(_Q), _answer(_GOOD)],
            "rejected": [_user(_Q), _answer(_BAD)],
            "responses": [_GOOD, _BAD],
        },
        "readers of Magpie-Align/Magpie-Llama-3.1-Pro-DPO-100K-v0.1 (uuid, instruction, chosen, rejected)",
        needs=("uuid",),
        aside=("responses", "conversations"),
    ),
    Named(
        "ultrainteract-pair",
        "preference",
        {"prompt": "trajectory", "chosen": "chosen", "rejected": "rejected"},
        {
            "trajectory": [{"from": "user", "value": _Q}],
            "chosen": _GOOD,
            "rejected": _BAD,
            "task": "Logic",
        },
        "open-instruct scripts/data/preferences/ultrainteract.py",
    ),
    Named(
        "math-step-dpo",
        "preference",
        {
            "prompt": "prompt",
            "prefix": "initial_reason_steps",
            "chosen": "chosen",
            "rejected": "rejected",
        },
        {
            "prompt": "What is 6 times 7?",
            "initial_reason_steps": "Step 1: 6 times 7 is 6 times 5 and 12.\nStep 2:",
            "chosen": " That is 42.",
            "rejected": " That is 41.",
            "full_chosen": " That is 42.",
            "full_rejected": " That is 41.",
            "answer": "42",
        },
        "the card of xinlai/Math-Step-DPO-10K",
        needs=("full_chosen", "full_rejected"),
        aside=("answer",),
        note="a response is the first steps followed by the step that differs",
    ),
    Named(
        "simpo-seed",
        "rollouts",
        {"prompt": "prompt", "response": "generated_text"},
        {"prompt": _Q, "format_prompt": f"<user>{_Q}", "generated_text": _GOOD},
        "remembered: SimPO on_policy_data_gen/decode.py",
        verified=False,
    ),
    Named(
        "trl-conversational",
        "preference",
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        {"prompt": [_user(_Q)], "chosen": [_answer(_GOOD)], "rejected": [_answer(_BAD)]},
        "TRL docs/source/dataset_formats.md",
        recognized=False,
    ),
    Named(
        "trl-completions",
        "rollouts",
        {"prompt": "prompt", "response": "completion"},
        {
            "step": 1,
            "prompt": f"<|im_start|>user\n{_Q}<|im_end|>\n<|im_start|>assistant\n",
            "completion": f"{_GOOD}<|im_end|>",
            "advantage": 0.5,
        },
        "TRL trl/trainer/grpo_trainer.py (log_completions)",
        needs=("step", "advantage"),
        shape="rendered",
        note="the prompt was rendered by a chat template and is split into messages again",
    ),
    Named(
        "trl-stepwise",
        "rollouts",
        {"prompt": "prompt", "steps": "completions"},
        {
            "prompt": "A crate holds 12 jars; how many in 3?",
            "completions": ["One holds 12.", "Three hold 36."],
            "labels": [True, True],
        },
        "TRL docs/source/dataset_formats.md",
        needs=("completions[]", "labels[]"),
    ),
    Named(
        "openai-preference",
        "preference",
        {
            "prompt": "input.messages",
            "chosen": "preferred_output",
            "rejected": "non_preferred_output",
        },
        {
            "input": {"messages": [_user(_Q)], "tools": []},
            "preferred_output": [_answer(_GOOD)],
            "non_preferred_output": [_answer(_BAD)],
        },
        "OpenAI's guide to direct preference optimization",
        optional={"tools": "input.tools"},
    ),
    Named(
        "openai-batch",
        "rollouts",
        {"prompt": "body.messages", "responses": "response.body.choices[].message"},
        {
            "custom_id": "1",
            "body": {"messages": [_user(_Q)]},
            "response": {"body": {"choices": [{"index": 0, "message": _answer(_GOOD)}]}},
        },
        "remembered: OpenAI's batch output, with its requests joined by custom_id",
        verified=False,
        optional={"tools": "body.tools"},
    ),
    Named(
        "openai-batch-output",
        "rollouts",
        {"responses": "response.body.choices[].message"},
        {
            "custom_id": "1",
            "response": {"body": {"choices": [{"index": 0, "message": _answer(_GOOD)}]}},
        },
        "remembered: OpenAI's batch output",
        verified=False,
        refused="the output of a batch has no prompts: join each row with its request by custom_id, as a column body",
    ),
    Named(
        "vllm",
        "rollouts",
        {"prompt": "prompt", "responses": "outputs[].text"},
        {"request_id": "1", "prompt": _Q, "outputs": [{"index": 0, "text": _GOOD}]},
        "remembered: vLLM's RequestOutput as JSON",
        verified=False,
        shape="rendered",
    ),
    Named(
        "verl",
        "rollouts",
        {"prompt": "input", "response": "output"},
        {"input": f"user\n{_Q}\nassistant\n", "output": _GOOD, "gts": "", "score": 1.0, "step": 1},
        "verl verl/trainer/ppo/ray_trainer.py (_dump_generations)",
        needs=("score", "step"),
        shape="rendered",
    ),
    Named(
        "openrlhf",
        "rollouts",
        {"prompt": "input", "response": "output"},
        {"input": _Q, "output": _GOOD, "reward": 0.5},
        "remembered: OpenRLHF's batch inference",
        verified=False,
        needs=("reward",),
        shape="rendered",
    ),
    Named(
        "nemo-rl-preference",
        "preference",
        {"prompt": "context", "chosen": "completions", "rejected": "completions"},
        {
            "context": [_user(_Q)],
            "completions": [
                {"rank": 1, "completion": [_answer(_BAD)]},
                {"rank": 0, "completion": [_answer(_GOOD)]},
            ],
        },
        "NeMo-RL nemo_rl/data/datasets/preference_datasets/preference_dataset.py",
        needs=("completions[].rank", "completions[].completion"),
        shape="ranked",
        note="responses with the lowest rank are chosen, all others are rejected; if all ranks are equal, it is a tie",
    ),
    Named(
        "nemo-rl-log",
        "messages",
        {"messages": "content[0]"},
        {"content": [[_user(_Q), _answer(_GOOD)]], "rewards": [1.0], "idx": 0},
        "NeMo-RL nemo_rl/algorithms/grpo.py (val_data_step*.jsonl)",
        needs=("rewards", "idx"),
    ),
    Named(
        "skyrl",
        "rollouts",
        {"prompt": "input_prompt", "response": "output_response"},
        {
            "input_prompt": f"<|im_start|>user\n{_Q}<|im_end|>\n<|im_start|>assistant\n",
            "output_response": f"{_GOOD}<|im_end|>",
            "score": [1.0],
            "env_class": "e",
        },
        "SkyRL skyrl/train/utils/trainer_utils.py (dump_per_dataset_eval_results)",
        shape="rendered",
    ),
    Named(
        "verifiers",
        "rollouts",
        {"prompt": "prompt", "response": "completion"},
        {"prompt": [_user(_Q)], "completion": [_answer(_GOOD)], "answer": "Shannon", "reward": 1.0},
        "remembered: results of verifiers, which prime-rl uses",
        verified=False,
        needs=("answer", "reward"),
        aside=("answer",),
    ),
    Named(
        "prm800k",
        "rollouts",
        {"prompt": "question.problem", "steps": "label.steps"},
        {
            "question": {"problem": "What is 6 times 7?"},
            "label": {
                "steps": [
                    {
                        "completions": [{"text": "6 times 7 is 42.", "rating": 1}],
                        "human_completion": None,
                        "chosen_completion": 0,
                    }
                ]
            },
        },
        "TRL examples/datasets/prm800k.py; openai/prm800k README.md",
        needs=("label.steps[].completions[].text",),
        shape="prm800k",
        note="responses are the labelled path, and each of its beginnings followed by another rated step, as in TRL",
    ),
    Named(
        "math-shepherd",
        "rollouts",
        {"prompt": "input", "steps": "input"},
        {
            "input": "What is 6 times 7? Step 1: 6 times 5 is 30. ки\nStep 2: The answer is: 42 ки",
            "label": "What is 6 times 7? Step 1: 6 times 5 is 30. +\nStep 2: The answer is: 42 +",
            "task": "GSM8K",
        },
        "TRL examples/datasets/math_shepherd.py",
        needs=("label", "task"),
        shape="math_shepherd",
    ),
    Named(
        "processbench",
        "rollouts",
        {"prompt": "problem", "steps": "steps"},
        {
            "id": "1",
            "problem": "What is 6 times 7?",
            "steps": ["6 times 5 is 30.", "The answer is 41."],
            "final_answer_correct": False,
            "label": 1,
        },
        "ProcessBench README.md",
        needs=("final_answer_correct", "label"),
    ),
    Named(
        "rlhflow-prm",
        "rollouts",
        {"prompt": "conversations", "steps": "conversations"},
        {
            "conversations": [
                _user("What is 6 times 7? Step 1: 6 times 5 is 30."),
                _answer("+"),
                _user("Step 2: The answer is 42."),
                _answer("+"),
            ]
        },
        "RLHFlow math-rm/scalar_orm_train.py",
        shape="rlhflow_prm",
        recognized=False,
    ),
)
NAMED = {one.name: one for one in _TABLE}
