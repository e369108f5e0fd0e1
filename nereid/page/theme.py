"""The colours of a page: a few sets that keep WCAG's contrast, one of them by the seed."""

from __future__ import annotations

from dataclasses import dataclass

from nereid.layout.elements import HEADINGS, ElementClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours as `#rrggbb`: of headings, of other text; of the page and every second section; of cards and their edges; of
    buttons and what is written on them; of links."""

    ink: str
    soft: str
    ground: str
    band: str
    card: str
    edge: str
    accent: str
    on_accent: str
    link: str

    def color_of(self, kind: ElementClass) -> str:
        """Of a class' text."""
        if kind is ElementClass.BUTTON:
            return self.on_accent
        if kind is ElementClass.LINK:
            return self.link
        return self.ink if kind in HEADINGS or kind is ElementClass.FIELD else self.soft

    def ground_of(self, kind: ElementClass, number: int, *, free: bool) -> str | None:
        """What an element is drawn on: its own, or of section `number` where it stands free in that; else its holder's."""
        if kind is ElementClass.BUTTON:
            return self.accent
        if kind in (ElementClass.CARD, ElementClass.FIGURE):
            return self.card
        return self.band_of(number) if free else None

    def band_of(self, number: int) -> str:
        return self.ground if number % 2 else self.band


def _theme(ink: str, soft: str, ground: str, band: str, edge: str, accent: str) -> Theme:
    return Theme(
        ink=ink, soft=soft, ground=ground, band=band, card="#ffffff", edge=edge, accent=accent, on_accent="#ffffff", link=accent
    )


THEMES = (
    _theme("#1c1917", "#57534e", "#fffdf8", "#f5efe3", "#e7dfd0", "#9a3412"),
    _theme("#0f172a", "#475569", "#ffffff", "#f1f5f9", "#dbe2ea", "#1d4ed8"),
    _theme("#14231a", "#4a5a50", "#fdfffc", "#edf3ec", "#d6e0d5", "#166534"),
    _theme("#1f1727", "#5b5065", "#fffdff", "#f4eff7", "#e2d9e8", "#7e22ce"),
    _theme("#10222a", "#46606b", "#fcffff", "#e9f2f4", "#d2e0e4", "#0e7490"),
)


def theme_of(seed: int) -> Theme:
    return THEMES[seed % len(THEMES)]
