"""Figures as pages write them."""

import pytest

from tpdiff.evaluation.markdown import joined, number, table


@pytest.mark.parametrize(
    ("value", "written"),
    [(3480.2, "3480"), (-12345.6, "-12346"), (100.0, "100"), (99.44, "99.4"), (0.04567, "0.0457"), (17912, "17912")],
)
def test_figures_of_at_least_100_are_whole_and_others_have_three_digits(value, written):
    assert number(value) == written


def test_what_a_system_does_not_tell_is_unknown():
    assert number(float("nan")) == "unknown"


def test_one_figure_a_seed():
    assert joined([1720.4, None, 2]) == "1720 / never / 2"


def test_a_bar_in_a_name_opens_no_cell():
    assert table(["arm", "1 | 2"], [["a|b", "3"]]) == ["| arm | 1 \\| 2 |", "| --- | --- |", "| a\\|b | 3 |"]
