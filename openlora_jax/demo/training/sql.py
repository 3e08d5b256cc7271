"""`sql`: a table's schema and a question in, one SQLite query out. Judged by running the query."""

import random
import re
import sqlite3
from contextlib import closing

from openlora_jax.demo.training.behaviour import Behaviour, Example, pick
from openlora_jax.demo.training.sql_questions import HELD_OUT_TABLES, QUESTIONS, TRAINING_TABLES, Table

DATABASES = 3
ROWS = 30
MAX_SQLITE_STEPS = 1_000_000


def make_example(rng: random.Random, table: Table, query: str, question: str) -> Example:
    """The question and its query about one table, with values drawn from the table's own."""
    column = pick(rng, tuple(table.texts))
    number = pick(rng, tuple(table.numbers))
    low, high = table.numbers[number]
    blanks = {
        "t": table.name, "s": table.rows, "l": table.label, "c": column, "v": pick(rng, table.texts[column]),
        "n": number, "x": rng.randrange(low, high), "k": rng.randrange(2, 9),
    }  # fmt: skip
    return Example(f"Table: {table.schema}\nQuestion: {question.format(**blanks)}", query.format(**blanks))


def make_training(rng: random.Random) -> list[Example]:
    return [
        make_example(rng, table, query, pick(rng, questions[:-1]))
        for _ in range(2)
        for table in TRAINING_TABLES
        for query, questions in QUESTIONS.items()
    ]


def make_held_out(rng: random.Random) -> list[Example]:
    """Each query asked of two or three unseen tables, in the held-out way or a known one."""
    return [
        make_example(rng, table, query, question)
        for query, questions in QUESTIONS.items()
        for table, question in zip(
            rng.sample(HELD_OUT_TABLES, 3), (questions[-1], questions[-1], questions[0]), strict=True
        )
    ]


def fill(connection: sqlite3.Connection, table: Table, rng: random.Random) -> None:
    """Creates the table with random rows."""
    connection.execute(f"CREATE TABLE {table.schema.replace('(', ' (', 1)}")
    for row in range(ROWS):
        texts = (f"{table.label} {row}", *(pick(rng, values) for values in table.texts.values()))
        numbers = (rng.randint(low, high) for low, high in table.numbers.values())
        values = (*texts, *numbers)
        connection.execute(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(values))})", values)


def run(connection: sqlite3.Connection, query: str) -> list[tuple[object, ...]] | None:
    """The query's rows, in order where it asks for one; None if it is no single valid SELECT."""
    if not query.lstrip().upper().startswith("SELECT"):
        return None
    try:
        rows = connection.execute(query).fetchall()
    except (sqlite3.Error, sqlite3.Warning):
        return None
    return rows if "ORDER BY" in query.upper() else sorted(rows, key=repr)


def is_right(example: Example, text: str) -> bool:
    """The answer runs and gives the wanted query's rows on every one of three random databases."""
    matched = re.match(r"Table: (\w+)\(", example.prompt)
    tables = {table.name: table for table in (*TRAINING_TABLES, *HELD_OUT_TABLES)}
    if matched is None:
        return False
    for seed in range(DATABASES):
        with closing(sqlite3.connect(":memory:")) as connection:
            fill(connection, tables[matched[1]], random.Random(seed))
            connection.execute("PRAGMA query_only = ON")
            connection.set_progress_handler(lambda: 1, MAX_SQLITE_STEPS)
            wanted, got = run(connection, example.answer), run(connection, text)
            if got is None or got != wanted:
                return False
    return True


SQL = Behaviour(
    name="sql",
    make_training=make_training,
    make_held_out=make_held_out,
    is_right=is_right,
    instruction="Answer with exactly one SQLite query and nothing else: no explanation, no code fence.",
    max_new_tokens=48,
    lora={
        "r": 4,
        "lora_alpha": 4,
        "use_rslora": True,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "rank_pattern": {"gate_proj": 2, "up_proj": 2, "down_proj": 2},
    },
)
