"""Bars in text and in pictures."""

from xml.etree import ElementTree as ET

from shimmy.commands.terminal.bar_chart import Bar, svg, text_bars

SVG = "{http://www.w3.org/2000/svg}"


def test_the_longest_bar_is_full_and_none_vanishes() -> None:
    assert text_bars([10, 5, 0.01, 0], 4) == ["████", "██", "▏", ""]
    assert text_bars([8, 1], 1) == ["█", "▏"]
    assert text_bars([], 4) == []
    assert text_bars([0.0], 4) == [""]


def test_a_picture_has_a_bar_for_each_figure_in_proportion() -> None:
    drawn = ET.fromstring(svg("tiny", "2 threads", "tokens/s", [Bar("pp512", 400), Bar("tg128", 100, 3.25)]))
    widths = [float(bar.attrib["width"]) for bar in drawn.iter(f"{SVG}rect")]
    assert widths[0] == 4 * widths[1] > 0
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert texts == ["tiny", "2 threads", "pp512", "400.00 ± 0.00 tokens/s", "tg128", "100.00 ± 3.25 tokens/s"]


def test_a_name_is_text_whatever_it_holds() -> None:
    hostile = '"><script>alert(1)</script>&'
    drawn = ET.fromstring(svg(hostile, hostile, hostile, [Bar(hostile, 0)]))
    assert drawn.attrib["aria-label"] == hostile
    assert not list(drawn.iter(f"{SVG}script"))
