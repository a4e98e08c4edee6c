from __future__ import annotations

import io
import warnings

import pytest
from matplotlib import font_manager

from cifarnet.visualize import canvas, fonts


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_warned", set())


def draw(title: str) -> bytes:
    axes = canvas.open_axes(None, width=2, height=1)
    axes.set_title(title)
    buffer = io.BytesIO()
    canvas.figure_of(axes).savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def test_a_letter_of_another_font_is_drawn_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def letters(family: str) -> set[int]:
        path = font_manager.findfont(font_manager.FontProperties(family=[family]))
        return set(font_manager.get_font(path).get_charmap())

    letter = chr(min(code for code in letters("STIXGeneral") - letters("DejaVu Sans") if code > 0x2000))
    monkeypatch.setattr(fonts, "FAMILIES", ("A font that is not installed", "STIXGeneral"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw(f"a {letter}")
    monkeypatch.setattr(fonts, "FAMILIES", ())
    with pytest.warns(UserWarning, match="No installed font has the letters"):
        assert draw(f"a {letter}") != drawn


def test_a_letter_that_no_font_has_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "FAMILIES", ())
    with pytest.warns(UserWarning, match="No installed font has the letters '猫'.*Install a font") as caught:
        draw("猫\ncat")
    draw("猫")
    assert len(caught) == 1


def test_latin_greek_and_cyrillic_need_no_other_font() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw("cat\nd\u00f6g \u0436\u0434\u0438 \u03c6 \u00df")
