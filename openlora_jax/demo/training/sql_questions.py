"""What the `sql` adapter asks about: tables, and queries with the ways to ask for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table: what its rows are called, the column that names a row, text columns and their values, number columns
    and their ranges (both ends included).
    """

    name: str
    rows: str
    label: str
    texts: Mapping[str, Sequence[str]]
    numbers: Mapping[str, tuple[int, int]]

    @property
    def schema(self) -> str:
        texts = [f"{column} TEXT" for column in (self.label, *self.texts)]
        return f"{self.name}({', '.join(texts + [f'{column} INTEGER' for column in self.numbers])})"


CITIES = ("Paris", "Berlin", "Madrid", "Oslo", "Tokyo")
COUNTRIES = ("France", "Brazil", "Kenya", "Japan", "Canada")
COLOURS = ("red", "blue", "green", "black")

TRAINING_TABLES = (
    Table(
        "employees",
        "employees",
        "name",
        {"department": ("sales", "legal", "support"), "city": CITIES},
        {"salary": (2000, 9000), "age": (20, 65)},
    ),
    Table(
        "books",
        "books",
        "title",
        {"author": ("Austen", "Borges", "Camus"), "genre": ("crime", "poetry", "travel")},
        {"pages": (80, 900), "year": (1900, 2024)},
    ),
    Table(
        "students",
        "students",
        "name",
        {"major": ("biology", "history", "physics")},
        {"grade": (1, 100), "age": (17, 30)},
    ),
    Table(
        "cars",
        "cars",
        "model",
        {"maker": ("Fiat", "Volvo", "Toyota"), "colour": COLOURS},
        {"price": (5000, 90000), "year": (1990, 2024)},
    ),
    Table(
        "movies",
        "movies",
        "title",
        {"director": ("Varda", "Kurosawa", "Nolan"), "genre": ("comedy", "drama", "horror")},
        {"length": (60, 220), "rating": (1, 100)},
    ),
    Table("hotels", "hotels", "name", {"city": CITIES}, {"rooms": (5, 400), "stars": (1, 5)}),
    Table(
        "orders",
        "orders",
        "number",
        {"customer": ("Meyer", "Smith", "Tanaka"), "status": ("open", "paid", "sent")},
        {"amount": (5, 5000)},
    ),
    Table(
        "products",
        "products",
        "name",
        {"category": ("toys", "tools", "food"), "brand": ("Acme", "Globex", "Umbra")},
        {"price": (1, 999), "stock": (0, 500)},
    ),
    Table(
        "flights",
        "flights",
        "code",
        {"origin": CITIES, "airline": ("Condor", "Delta", "Iberia")},
        {"seats": (50, 400), "duration": (40, 900)},
    ),
    Table("rivers", "rivers", "name", {"country": COUNTRIES}, {"length": (50, 6500)}),
    Table(
        "patients",
        "patients",
        "name",
        {"ward": ("north", "south", "east"), "doctor": ("Lee", "Moss", "Patel")},
        {"age": (1, 99), "weight": (10, 140)},
    ),
    Table(
        "songs",
        "songs",
        "title",
        {"artist": ("Abba", "Bjork", "Prince"), "genre": ("jazz", "pop", "rock")},
        {"seconds": (90, 600), "plays": (0, 90000)},
    ),
    Table(
        "teams",
        "teams",
        "name",
        {"sport": ("football", "hockey", "rugby"), "city": CITIES},
        {"wins": (0, 40), "losses": (0, 40)},
    ),
    Table("plants", "plants", "name", {"family": ("fern", "palm", "rose")}, {"height": (1, 300), "price": (2, 90)}),
    Table(
        "houses",
        "houses",
        "address",
        {"district": ("harbour", "centre", "hills"), "owner": ("Silva", "Weber", "Khan")},
        {"rooms": (1, 12), "price": (90000, 900000)},
    ),
    Table(
        "dogs",
        "dogs",
        "name",
        {"breed": ("beagle", "poodle", "boxer"), "colour": COLOURS},
        {"age": (1, 18), "weight": (2, 70)},
    ),
    Table(
        "laptops", "laptops", "model", {"brand": ("Asus", "Dell", "Lenovo")}, {"memory": (4, 128), "price": (300, 4000)}
    ),
    Table(
        "museums",
        "museums",
        "name",
        {"city": CITIES, "theme": ("art", "history", "science")},
        {"visitors": (100, 90000), "fee": (0, 40)},
    ),
    Table(
        "recipes",
        "recipes",
        "name",
        {"cuisine": ("thai", "greek", "mexican")},
        {"minutes": (5, 240), "calories": (50, 1500)},
    ),
    Table(
        "trains", "trains", "number", {"line": ("coast", "valley", "express")}, {"speed": (60, 320), "delay": (0, 90)}
    ),
)

HELD_OUT_TABLES = (
    Table(
        "players",
        "players",
        "name",
        {"position": ("goalkeeper", "defender", "striker"), "country": ("Ghana", "Italy", "Peru")},
        {"goals": (0, 60), "height": (160, 205)},
    ),
    Table("ships", "ships", "name", {"flag": ("Malta", "Panama", "Norway")}, {"length": (20, 400), "crew": (3, 90)}),
    Table(
        "courses",
        "courses",
        "title",
        {"teacher": ("Baker", "Ortiz", "Singh")},
        {"credits": (1, 12), "hours": (10, 120)},
    ),
    Table(
        "restaurants",
        "restaurants",
        "name",
        {"cuisine": ("indian", "french", "korean"), "town": ("Ulm", "Bath", "Nice")},
        {"seats": (10, 200), "rating": (1, 50)},
    ),
    Table(
        "invoices",
        "invoices",
        "number",
        {"client": ("Nordwind", "Helix", "Quanta")},
        {"total": (10, 9000), "items": (1, 40)},
    ),
    Table(
        "mountains",
        "mountains",
        "name",
        {"region": ("Alps", "Andes", "Urals")},
        {"height": (900, 8000), "climbers": (0, 500)},
    ),
)

# Query and the ways to ask for it; the last way of each is held out.
# {t} table, {s} its rows, {l} label, {c} and {v} a text column and value, {n} and {x} a number column and value,
# {k} a small count.
QUESTIONS = {
    "SELECT COUNT(*) FROM {t};": (
        "How many {s} are there?",
        "Count all {s}.",
        "What is the number of {s}?",
        "Tell me how many {s} we have.",
    ),
    "SELECT COUNT(*) FROM {t} WHERE {c} = '{v}';": (
        "How many {s} have {c} {v}?",
        "Count the {s} with {c} {v}.",
        "For how many {s} is the {c} {v}?",
        "What is the number of {s} whose {c} is {v}?",
    ),
    "SELECT {l} FROM {t} WHERE {c} = '{v}';": (
        "Which {s} have {c} {v}?",
        "Show the {l} of all {s} with {c} {v}.",
        "List the {s} whose {c} is {v}.",
        "Give me the {s} with {v} as {c}.",
    ),
    "SELECT {l} FROM {t} WHERE {n} > {x};": (
        "Which {s} have {n} above {x}?",
        "List the {s} with more than {x} {n}.",
        "Show the {l} of {s} whose {n} is greater than {x}.",
        "Find the {s} with {n} over {x}.",
    ),
    "SELECT {l} FROM {t} WHERE {n} < {x};": (
        "Which {s} have {n} below {x}?",
        "List the {s} with less than {x} {n}.",
        "Show the {l} of {s} whose {n} is smaller than {x}.",
        "Find the {s} with {n} under {x}.",
    ),
    "SELECT COUNT(*) FROM {t} WHERE {n} > {x};": (
        "How many {s} have {n} above {x}?",
        "Count the {s} with more than {x} {n}.",
        "For how many {s} is the {n} greater than {x}?",
        "What is the number of {s} with {n} over {x}?",
    ),
    "SELECT AVG({n}) FROM {t};": (
        "What is the average {n} of all {s}?",
        "Compute the mean {n}.",
        "Average {n} of the {s}?",
        "On average, what is the {n} of the {s}?",
    ),
    "SELECT MAX({n}) FROM {t};": (
        "What is the highest {n}?",
        "Show the maximum {n} of the {s}.",
        "What is the largest {n} of all {s}?",
        "Tell me the greatest {n} among the {s}.",
    ),
    "SELECT MIN({n}) FROM {t};": (
        "What is the lowest {n}?",
        "Show the minimum {n} of the {s}.",
        "What is the smallest {n} of all {s}?",
        "Tell me the least {n} among the {s}.",
    ),
    "SELECT SUM({n}) FROM {t} WHERE {c} = '{v}';": (
        "What is the total {n} of {s} with {c} {v}?",
        "Sum the {n} of all {s} whose {c} is {v}.",
        "Add up the {n} where {c} is {v}.",
        "What is the sum of {n} for {s} with {c} {v}?",
    ),
    "SELECT AVG({n}) FROM {t} WHERE {c} = '{v}';": (
        "What is the average {n} of {s} with {c} {v}?",
        "Compute the mean {n} of {s} whose {c} is {v}.",
        "Average {n} where {c} is {v}?",
        "On average, what is the {n} for {s} with {c} {v}?",
    ),
    "SELECT {l} FROM {t} ORDER BY {n} DESC LIMIT 1;": (
        "Which of the {s} has the highest {n}?",
        "Show the {l} with the largest {n}.",
        "Who or what has the most {n}?",
        "Name the one of the {s} with the greatest {n}.",
    ),
    "SELECT {l} FROM {t} ORDER BY {n} LIMIT 1;": (
        "Which of the {s} has the lowest {n}?",
        "Show the {l} with the smallest {n}.",
        "Who or what has the fewest {n}?",
        "Name the one of the {s} with the least {n}.",
    ),
    "SELECT {l} FROM {t} ORDER BY {n} DESC LIMIT {k};": (
        "Show the {k} {s} with the highest {n}.",
        "Which {k} {s} have the largest {n}?",
        "Top {k} {s} by {n}?",
        "Name the {k} {s} with the most {n}.",
    ),
    "SELECT {c}, COUNT(*) FROM {t} GROUP BY {c};": (
        "How many {s} are there per {c}?",
        "Count the {s} for each {c}.",
        "Number of {s} by {c}?",
        "For every {c}, tell me how many {s} there are.",
    ),
    "SELECT {c}, AVG({n}) FROM {t} GROUP BY {c};": (
        "What is the average {n} per {c}?",
        "Compute the mean {n} for each {c}.",
        "Average {n} of the {s} by {c}?",
        "For every {c}, tell me the average {n}.",
    ),
    "SELECT DISTINCT {c} FROM {t};": (
        "Which different {c} values are there?",
        "List every {c} once.",
        "Show all distinct {c} values of the {s}.",
        "What {c} values occur among the {s}?",
    ),
    "SELECT {l} FROM {t} WHERE {c} = '{v}' AND {n} > {x};": (
        "Which {s} with {c} {v} have {n} above {x}?",
        "List the {s} whose {c} is {v} and whose {n} is greater than {x}.",
        "Show the {l} of {s} with {c} {v} and more than {x} {n}.",
        "Find the {s} with {v} as {c} and {n} over {x}.",
    ),
}
