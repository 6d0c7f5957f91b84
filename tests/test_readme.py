"""What the README and the pages that it links to say is so: commands parse, tables agree with the code, Python runs."""

import io
import re
import shlex
import xml.etree.ElementTree as ET
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import numpy
import pyarrow
import pyarrow.parquet
import pytest
from ray.scripts.scripts import cli as ray_cli

import armo_ray
from armo_ray import exit_status
from armo_ray.cli.commands import COMMANDS as ARMO_RAY
from armo_ray.cli.main import main
from armo_ray.cli.parser import build_parser
from armo_ray.formatting.svg import chart_style, histogram
from armo_ray.model.catalog import CATALOG, table
from armo_ray.model.families import FAMILIES
from armo_ray.model.family_file import family_of
from armo_ray.outputs.schema import CANDIDATE_FIELDS, FLAGS, REJECT_REASONS, RESERVED
from armo_ray.score.config import load_config
from armo_ray.text.layouts import ALIASES
from jobs.measure.picture import picture
from tests.support.local import score_locally
from tests.support.paths import ROOT, SAMPLE
from tests.test_architecture import BETWEEN_COMMANDS, COMMANDS, CORE, FACE

PAGES = (
    "README.md",
    "jobs/README.md",
    "cluster/README.md",
    "armo_ray/curate/README.md",
    "armo_ray/judging/README.md",
    "armo_ray/outputs/README.md",
    "armo_ray/text/README.md",
    ".github/CONTRIBUTING.md",
)
TEXTS = {name: (ROOT / name).read_text("utf-8") for name in PAGES}
README, EVERYTHING = TEXTS["README.md"], "\n".join(TEXTS.values())
# programs that are not of this project, and the options that the pages give them
OTHERS = {"docker", "kubectl", "sbatch", "pip", "git", "export", ".venv/bin/python"}
OTHER_OPTIONS = {
    *("--working-dir", "--address", "--generate", "--head", "--dashboard-host"),  # ray
    *("--rm", "--gpus", "--from-file"),  # docker and kubectl
    "--no-deps",  # pip
}
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(language: str, text: str = EVERYTHING) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


LINES = sorted(
    {re.sub(r"\s+# .*", "", line) for block in blocks("bash") for line in block.splitlines() if line.strip()}
)


def rows(text: str, first: str) -> list[list[str]]:
    """The rows of the table whose first heading is given."""
    table = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table, first
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[1].splitlines()]


def module_exists(name: str) -> bool:
    return (ROOT / name.replace(".", "/")).with_suffix(".py").exists()


@pytest.mark.parametrize("line", LINES)
def test_every_command_is_one_that_exists(line: str) -> None:
    words = [word for word in shlex.split(line) if not re.match("[A-Z]+=", word)]
    if "-m" in words and "pytest" not in words:
        assert module_exists(words[words.index("-m") + 1])
    if words[0] == "armo-ray":
        build_parser().parse_args(words[1:])
    elif words[0] == "ray":
        command: click.Command | None = ray_cli
        arguments = words[1:]
        while isinstance(command, click.Group):
            _, command, arguments = command.resolve_command(click.Context(command), arguments)
        assert command is not None
    elif words[0] == "bash":
        assert (ROOT / words[1]).exists()
    else:
        assert words[0] in OTHERS | {"python"}
    for word in words:
        if word.startswith(("jobs/", "cluster/", "tests/")):
            assert (ROOT / word).exists()


def test_every_option_is_one_that_exists() -> None:
    parser: Any = build_parser()
    commands = parser._subparsers._group_actions[0].choices.values()
    options = {option for command in commands for option in command._option_string_actions}
    for path in (ROOT / "tests" / "run.sh", *(ROOT / "jobs" / "measure").glob("*.py")):
        options |= set(re.findall(r"--[a-z][a-z-]*", path.read_text("utf-8")))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", EVERYTHING)) - OTHER_OPTIONS
    assert named - options == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page: str) -> None:
    targets = [target for target in LINK.findall(TEXTS[page]) if not target.startswith("https://")]
    for target in targets:
        path, _, heading = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        titles = re.findall(r"^#+ (.*)$", found.read_text("utf-8"), re.MULTILINE) if heading else []
        slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
        assert not heading or heading in slugs, target


def test_every_page_is_linked_from_the_readme() -> None:
    assert set(PAGES) - {"README.md"} <= {target.partition("#")[0] for target in LINK.findall(README)}


def test_every_name_of_the_output_and_input_is_told() -> None:
    names = [field.name for field in CANDIDATE_FIELDS] + list(REJECT_REASONS) + list(FLAGS) + list(RESERVED)
    names += [alias for aliases in ALIASES.values() for alias in aliases if alias != "system_prompt"]
    assert [name for name in names if f"`{name}`" not in EVERYTHING] == []


def test_the_tables_list_every_family_command_and_exit_status() -> None:
    assert rows(README, "family") == [list(row) for row in table()]
    assert list(CATALOG) == list(FAMILIES)
    commands = [name for row in rows(README, "command") for name in re.findall("`(.*?)`", row[0])]
    assert sorted(commands) == sorted(ARMO_RAY)
    statuses = {value for name, value in vars(exit_status).items() if name.isupper()}
    assert {int(row[0]) for row in rows(README, "exit status")} == statuses
    assert len(rows(README, "exit status")) == len(statuses)


def test_the_picture_shows_every_room_in_its_tier_and_every_arrow_between_commands() -> None:
    (picture,) = blocks("mermaid", README)
    tiers = {name: set[str]() for name in ("face", "commands", "core")}
    tier, arrows = "", set()
    for line in map(str.strip, picture.splitlines()):
        if line.startswith("subgraph"):
            tier = line.split()[1] if line.split()[1] in tiers else tier
        elif re.fullmatch(r"\w+( --> \w+)?", line) and line not in ("end",):
            tiers[tier] |= set(line.split(" --> "))
            arrows |= {tuple(line.split(" --> "))} if "-->" in line else set()
    assert tiers == {"face": FACE - {"", "__main__"}, "commands": COMMANDS, "core": CORE}
    assert arrows == BETWEEN_COMMANDS
    assert "face --> commands --> core" in picture


def test_the_chart_is_a_file_that_needs_no_other() -> None:
    (path,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    root = ET.parse(ROOT / path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall(".//{*}text[@class='heading']")) == 3
    text = (ROOT / path).read_text("utf-8")
    assert "var(" not in text
    assert "href" not in text


def test_the_described_head_and_the_options_file_load(tmp_path: Path) -> None:
    head, example = blocks("toml", README)
    (tmp_path / "judge.toml").write_text(head, "utf-8")
    assert family_of(str(tmp_path / "judge.toml")).label_names == ("helpful", "safe")
    (tmp_path / "options.toml").write_text(example, "utf-8")
    config = load_config(str(tmp_path / "options.toml"), {"model": "m"})
    assert config.max_length == 4096


def test_the_worked_example_prints_what_is_shown(tiny_model: Path, tmp_path: Path) -> None:
    rollouts = ROOT / "jobs" / "samples" / "rollouts.jsonl"
    score_locally(tiny_model, rollouts, tmp_path / "scored", keep=["id"], keep_text=True)
    assert main(["mine", str(tmp_path / "scored"), "--output", str(tmp_path / "pairs"), "--keep", "id"]) == 0
    (example,) = (block for block in blocks("python", README) if "pairs/data" in block)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(example.replace("pairs/data", f"{tmp_path}/pairs/data"), {})
    assert printed.getvalue() in blocks("text", README)


def test_the_python_example_runs(tiny_model: Path) -> None:
    example = next(block for block in blocks("python") if "RewardModel.load" in block)
    found: dict[str, object] = {}
    exec(example.replace('"DIR"', repr(str(tiny_model))), found)
    assert found["scores"].score.shape == (2,)  # type: ignore[attr-defined]
    assert found["scores"].gating.shape == (2, 19)  # type: ignore[attr-defined]


def test_the_identity_of_the_score_holds_as_it_is_told(tiny_model: Path, tmp_path: Path) -> None:
    score_locally(tiny_model, SAMPLE, tmp_path, unit_rows=100, partition_by=["subset"])
    example = next(block for block in blocks("python") if "coefficients" in block)
    names = {"armo_ray": armo_ray, "numpy": numpy, "pyarrow": pyarrow}
    exec(example.replace("OUT/scores/", f"{tmp_path}/scores/"), names)
    assert names["table"].num_rows == 260


def test_charts_of_a_page_become_one_file_in_the_colors_of_the_page() -> None:
    css = (ROOT / "armo_ray/report/templates/page.css").read_text("utf-8") + chart_style()
    charts = [histogram(title, [0, 1, 2], [3, 4], ("x", "y")).__html__() for title in ("A", "B")]
    svg = picture(f"<style>\n{css}</style>{''.join(charts)}", ["B"])
    assert [text.text for text in ET.fromstring(svg).findall(".//{*}text[@class='heading']")] == ["B"]
    assert "fill: #3b6ea8" in svg
    with pytest.raises(KeyError, match="C"):
        picture("", ["C"])
