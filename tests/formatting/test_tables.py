"""Tables as text: what a cell holds stays in its cell."""

from armo_ray.formatting.tables import markdown_cell, markdown_table, text_table


def test_a_table_for_a_terminal_aligns_numbers_right_and_ends_no_line_with_blanks() -> None:
    table = text_table(["name", "n"], [["a", "1,000"], ["longer", ""]])
    assert table.split("\n") == ["name        n", "------  -----", "a       1,000", "longer"]


def test_a_markdown_table_keeps_every_cell_in_its_place() -> None:
    table = markdown_table(["rule|", "options"], [["a|b\nc", {"x": [1]}]])
    assert table.split("\n") == ["| rule\\| | options |", "|---|---|", '| a\\|b c | {"x": [1]} |']


def test_an_aligned_markdown_table_pads_its_cells() -> None:
    table = markdown_table(["name", "n"], [["a", "10"], ["bcdef", "2"]], aligned=True)
    assert table.split("\n") == [
        "| name  |  n |",
        "| ----- | -: |",
        "| a     | 10 |",
        "| bcdef |  2 |",
    ]


def test_a_cell_stays_one_cell() -> None:
    assert markdown_cell("a|b\nc") == "a\\|b c"
    assert markdown_cell({"a": [1]}) == '{"a": [1]}'
