"""Charts: what is drawn stands where it should, and nothing of a name becomes markup."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from planet_dist.charts import Interval, LineChart, Series, intervals, lines, nice_ticks, shares

HOSTILE = '"><script>alert(1)</script>'


def points(html: str, series: int) -> list[tuple[float, float]]:
    """The corners of a series' line."""
    path = re.findall(rf'<g class="s{series}"><path class="line" d="M([^"]*)"', html)[0]
    return [(float(x), float(y)) for x, y in (pair.split() for pair in path.split("L"))]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.71, 0.93, [0.7, 0.75, 0.8, 0.85, 0.9, 0.95]),
        (3.0, 3.0, [3.0, 4.0]),
        (0.0, 0.0, [0.0, 0.2]),
        (-2.0, 12000.0, [-5000, 0, 5000, 10000, 15000]),
    ],
)
def test_ticks_are_round_and_reach_over_all_values(low: float, high: float, ticks: list[float]) -> None:
    found = nice_ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert found == pytest.approx(ticks)


def test_whole_ticks_lie_within_the_values_and_are_whole() -> None:
    assert nice_ticks(1, 8, whole=True, most=6) == [2, 4, 6, 8]
    assert nice_ticks(1, 1, whole=True) == [1]
    assert nice_ticks(1, 3, whole=True) == [1, 2, 3]


def test_a_line_runs_through_its_points_in_order_and_larger_is_higher() -> None:
    drawn = points(lines(LineChart("loss", "epoch", [Series("a", [1, 2, 4], [0.5, 0.25, 1.0])])), 0)
    (x0, y0), (x1, y1), (x2, y2) = drawn
    assert (x2 - x0) == pytest.approx(3 * (x1 - x0), abs=0.2)
    assert y2 < y0 < y1
    assert (y1 - y2) == pytest.approx(3 * (y1 - y0), abs=0.2)


def test_the_names_of_ticks_have_room_whatever_their_length() -> None:
    for top in (0.0025, 12345.0, 1.0):
        html = lines(LineChart("t", "x", [Series("a", [1, 2], [0, top])]))
        ends = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]*)<', html)
        assert len(ends) >= 4
        assert all(float(x) >= 7 * len(name) for x, name in ends)


def test_what_is_not_finite_is_left_out_and_the_colours_stay_with_their_series() -> None:
    nan = float("nan")
    html = lines(
        LineChart("t", "x", [Series("gone", [1, 2], [nan, float("inf")]), Series("b", [1, 2, 3], [1, nan, 3])])
    )
    assert 'class="s0"' not in html and len(points(html, 1)) == 2
    assert lines(LineChart("t", "x", [Series("gone", [1], [nan])])) == ""


def test_a_hundred_thousand_points_stay_a_small_chart_of_the_same_shape() -> None:
    count = 100_000
    html = lines(LineChart("t", "step", [Series("a", range(count), [i / count for i in range(count)])]))
    drawn = points(html, 0)
    assert len(html) < 10_000 and len(drawn) <= 240
    assert all(later[1] <= earlier[1] for earlier, later in pairwise(drawn))


def test_widely_differing_values_stand_on_a_logarithmic_axis_where_that_is_wanted() -> None:
    series = [Series("a", [1, 2, 3], [1e4, 1e2, 1.0])]
    straight = points(lines(LineChart("t", "x", series, logarithmic=True)), 0)
    assert straight[1][1] - straight[0][1] == pytest.approx(straight[2][1] - straight[1][1], abs=0.2)
    linear = points(lines(LineChart("t", "x", series)), 0)
    assert linear[1][1] - linear[0][1] > 50 * (linear[2][1] - linear[1][1])


def test_intervals_reach_from_low_to_high_and_the_chosen_one_stands_out() -> None:
    html = intervals("t", [Interval("a", 0.2, 0.5, 0.6), Interval("b", 0.4, 0.6, 0.9, chosen=True)])
    ranges = [(float(a), float(b)) for a, b in re.findall(r'class="line" d="M([\d.]+) \d+H([\d.]+)"', html)]
    dots = [float(x) for x in re.findall(r'cx="([\d.]+)"', html)]
    scale = (ranges[1][1] - ranges[0][0]) / 0.7
    assert dots[0] - ranges[0][0] == pytest.approx(0.3 * scale, abs=0.2)
    assert html.count('class="named chosen"') == 1 and 'class="s0"' in html.split(">b<")[1]
    assert intervals("t", []) == ""


def test_shares_leave_what_they_do_not_name_blank() -> None:
    html = shares("time", [("waiting", 0.25), ("computing", 0.5)])
    assert "--share:0.2500" in html and 'style="flex:0.2500 0 0"' in html
    assert "waiting 25.0%" in html


def test_charts_are_well_formed_and_say_in_words_what_they_show_whatever_names_hold() -> None:
    for html in (
        lines(LineChart(HOSTILE, HOSTILE, [Series(HOSTILE, [1, 2], [1, 2]), Series("b", [1], [1])], [1.5])),
        intervals(HOSTILE, [Interval(HOSTILE, 0, 1, 2)]),
        shares(HOSTILE, [(HOSTILE, 0.5)]),
    ):
        tree = ElementTree.fromstring(html)
        assert tree.findall(".//script") == []
        told = next(element for element in tree.iter() if element.get("role") == "img").get("aria-label")
        assert told is not None and told.count(HOSTILE) >= 2
