"""Numbers, shares and times as people read them."""

from typing import Any

import pytest

from armo_ray.formatting.numbers import bare_percent, date, number, percent, signed, significant


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (-2e-17, "0"),
        (1234567, "1,234,567"),
        (12.0, "12"),
        (0.52345, "0.523"),
        (-0.012345, "-0.0123"),
        (34.125, "34.12"),
        (123.456, "123.5"),
        (12345.6, "12,346"),
        (1234567.8, "1.23e+06"),
        (0.0000123, "1.23e-05"),
    ],
)
def test_a_number_has_about_four_digits(value: Any, text: str) -> None:
    assert number(value) == text


def test_a_difference_has_its_sign() -> None:
    assert [signed(value) for value in (0.5, 0, -0.5, None)] == ["+0.500", "0", "-0.500", "-"]


def test_a_share_is_in_percent_and_never_minus_zero() -> None:
    assert [percent(value) for value in (0.1234, 1, -0.0001, None)] == ["12.3 %", "100.0 %", "0.0 %", "-"]
    assert percent(0.5, unit="%") == "50.0%"
    assert [bare_percent(value) for value in (0.12345, -0.00001, None)] == ["12.35", "0.00", "-"]


def test_a_cell_of_a_terminal_has_significant_digits() -> None:
    assert [significant(value) for value in (123456.0, 0.123456, None)] == ["1.235e+05", "0.1235", "-"]
    assert significant(0.123456, 2) == "0.12"


def test_a_time_of_any_zone_is_shown_in_utc() -> None:
    assert date("2026-11-20T01:30:05.25+02:00") == "2026-11-19 23:30:05 UTC"
