"""What the sections are about: businesses with their products and people, and the words shared by all; plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """A kind of business: what a brief calls it, whom it serves, and what it offers."""

    name: str
    people: str
    offers: tuple[str, ...]


def _topic(name: str, people: str, offers: str) -> Topic:
    return Topic(name, people, tuple(offers.split(", ")))


TOPICS: tuple[Topic, ...] = (
    _topic("bakery", "guests", "sourdough, croissants, rye bread, fruit tarts, cinnamon rolls, birthday cakes"),
    _topic("yoga studio", "members", "morning flow, breathing classes, beginner courses, retreats, private lessons, quiet hours"),
    _topic("bike shop", "riders", "city bikes, cargo bikes, tune-ups, helmets, wheel repair, test rides"),
    _topic("law firm", "clients", "contracts, family law, company founding, mediation, estate plans, first advice"),
    _topic("dental clinic", "patients", "check-ups, cleaning, braces, implants, emergency visits, care for children"),
    _topic("coffee roaster", "drinkers", "espresso beans, filter blends, tastings, brewing courses, subscriptions, cold brew"),
    _topic(
        "flower shop", "customers", "bouquets, wedding flowers, dried wreaths, house plants, same-day delivery, garden advice"
    ),
    _topic("music school", "students", "piano lessons, guitar lessons, choir, band practice, music theory, summer concerts"),
    _topic("hotel", "travellers", "sea views, breakfast, family rooms, a rooftop bar, late check-out, bike rental"),
    _topic("gym", "athletes", "weight training, spinning, sauna, personal coaching, boxing, open hours"),
    _topic("bookstore", "readers", "novels, picture books, readings, gift cards, used books, a reading corner"),
    _topic("photo studio", "families", "portraits, wedding albums, passport photos, product shots, framed prints, studio rental"),
    _topic("software company", "teams", "dashboards, automation, reports, integrations, support, secure hosting"),
    _topic("travel agency", "explorers", "island tours, city trips, rail passes, hiking weeks, group travel, insurance"),
    _topic("garden center", "gardeners", "seeds, fruit trees, soil, tools, pond plants, balcony kits"),
    _topic("pet clinic", "owners", "vaccination, surgery, grooming, puppy courses, nutrition, home visits"),
    _topic(
        "language school", "learners", "evening courses, exam training, conversation, online lessons, summer camps, translation"
    ),
    _topic("car repair shop", "drivers", "oil changes, brakes, tyre storage, inspections, body work, rental cars"),
    _topic("restaurant", "diners", "lunch menus, tasting menus, vegan dishes, wine pairing, catering, a garden terrace"),
    _topic("museum", "visitors", "guided tours, workshops, audio guides, late openings, school visits, a museum shop"),
    _topic("design agency", "brands", "logos, websites, packaging, campaigns, typography, user research"),
    _topic("accounting office", "founders", "tax returns, payroll, bookkeeping, annual reports, audits, start-up advice"),
    _topic("climbing hall", "climbers", "bouldering, rope courses, shoe rental, kids' groups, competitions, strength training"),
    _topic(
        "cleaning service", "households", "window cleaning, office cleaning, carpets, move-out cleaning, laundry, weekly visits"
    ),
)

NAME_FIRST = tuple(
    "Golden Silver Bright Quiet Little Northern Green Blue Happy Wild Urban Royal Honest Swift Early Hidden".split()
)
NAME_SECOND = tuple("Lane Harbor Corner House Leaf River Garden Bridge Star Field Works Circle Hill Road Stone Wave".split())

ADJECTIVES = tuple("fresh friendly careful modern simple reliable lovely quick honest warm".split())
FIRST_NAMES = tuple("Anna Ben Clara David Emma Felix Grace Hugo Ines Jonas Klara Leo Mia Noah Olga Paul".split())
ROLES = tuple("Founder, Manager, Assistant, Advisor, Planner, Trainer, Designer, Host".split(", "))
TIERS = ("Basic", "Plus", "Pro", "Family", "Team")
PLACES = tuple("Home About Services Prices Contact Jobs Blog Press Privacy Terms".split())
FIELDS = tuple("Name Email Phone Message Company City".split())

BUTTON_LABELS = (
    "Order now",
    "Book a visit",
    "Get started",
    "Learn more",
    "Contact us",
    "See all offers",
    "Join today",
    "Try it free",
    "Call us",
    "Sign up",
    "Reserve a place",
    "View prices",
)
