"""Problems told as stories: shopping, saving, travel, work, age, cooking, units, the clock."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from flexmix.sample.problems.arithmetic import Family, solved

NAMES = (
    "Amara", "Bela", "Carlos", "Dina", "Elif", "Farid", "Grace", "Hana", "Ivan", "Jun", "Kofi", "Lena", "Mei", "Nadia",
    "Omar", "Priya", "Quinn", "Rosa", "Samir", "Tara", "Uma", "Viktor", "Wanda", "Yusuf", "Zoe",
)  # fmt: skip
GOODS = (
    "apples", "pencils", "notebooks", "oranges", "candles", "stamps", "bottles of water", "loaves of bread",
    "light bulbs", "tickets", "seed packets", "batteries", "plates", "paint brushes", "postcards", "boxes of tea",
    "chairs", "lemons",
)  # fmt: skip
UNITS = (
    ("kilometres", "metres", 1000), ("metres", "centimetres", 100), ("hours", "minutes", 60), ("days", "hours", 24),
    ("kilograms", "grams", 1000), ("litres", "millilitres", 1000), ("feet", "inches", 12), ("pounds", "ounces", 16),
    ("weeks", "days", 7), ("yards", "feet", 3), ("minutes", "seconds", 60), ("centimetres", "millimetres", 10),
)  # fmt: skip


def shopping(rng: Random) -> str:
    name, (first, second) = rng.choice(NAMES), rng.sample(GOODS, 2)
    a, b, p, q = rng.randint(2, 24), rng.randint(2, 24), rng.randint(5, 90) * 5, rng.randint(5, 90) * 5
    ask = rng.choice(
        [
            f"{name} buys {a} {first} at {_money(p)} each and {b} {second} at {_money(q)} each. How much is that?",
            f"At the market {first} cost {_money(p)} a piece and {second} {_money(q)}. "
            f"What does {name} pay for {a} {first} and {b} {second}?",
            f"An order lists {a} {first} ({_money(p)} each) and {b} {second} ({_money(q)} each). Find its total.",
        ]
    )
    steps = (
        f"{a} * {_money(p)} = {_money(a * p)}",
        f"{b} * {_money(q)} = {_money(b * q)}",
        f"Together {_money(a * p + b * q)}.",
    )
    return solved(ask, *steps, answer=_money(a * p + b * q))


def change(rng: Random) -> str:
    name, thing, count, price = rng.choice(NAMES), rng.choice(GOODS), rng.randint(2, 12), rng.randint(4, 80) * 5
    cost = count * price
    note = next(value for value in (500, 1000, 2000, 5000, 10000) if value >= cost)
    ask = rng.choice(
        [
            f"{name} pays for {count} {thing} at {_money(price)} each with a {_money(note)} note. "
            "How much change is due?",
            f"{count} {thing} cost {_money(price)} each. {name} gives {_money(note)}. What comes back?",
        ]
    )
    return solved(
        ask,
        f"The price is {count} * {_money(price)} = {_money(cost)}.",
        f"{_money(note)} - {_money(cost)} = {_money(note - cost)}.",
        answer=_money(note - cost),
    )


def discount(rng: Random) -> str:
    price, rate, thing = (
        rng.randint(4, 200) * 500,
        rng.choice([5, 10, 15, 20, 25, 30, 40, 50]),
        rng.choice(["coat", "lamp", "bicycle", "radio", "desk", "tent", "camera", "rug"]),
    )
    cut = price * rate // 100
    ask = rng.choice(
        [
            "A {} costs {} and is reduced by {}%. What is the new price?",
            "The price of a {} was {}; it falls by {} percent. What is it now?",
        ]
    )
    steps = f"{rate}% of {_money(price)} is {_money(cut)}.", f"{_money(price)} - {_money(cut)} = {_money(price - cut)}."
    return solved(ask.format(thing, _money(price), rate), *steps, answer=_money(price - cut))


def interest(rng: Random) -> str:
    name, sum_, rate, years = rng.choice(NAMES), rng.randint(2, 90) * 100, rng.randint(1, 9), rng.randint(2, 10)
    yearly = sum_ * rate // 100
    ask = rng.choice(
        [
            f"{name} saves ${sum_} at {rate}% simple interest a year. How much is there after {years} years?",
            f"${sum_} earn {rate}% simple interest each year. To what do they grow in {years} years?",
        ]
    )
    steps = (
        f"A year brings {rate}% of ${sum_}, which is ${yearly}.",
        f"{years} years bring ${yearly * years}.",
        f"${sum_} + ${yearly * years} = ${sum_ + yearly * years}.",
    )
    return solved(ask, *steps, answer=f"${sum_ + yearly * years}")


def travel(rng: Random) -> str:
    speed, hours, minutes = rng.randint(4, 24) * 5, rng.randint(1, 8), rng.choice([0, 12, 24, 30, 36, 48])
    who = rng.choice(["A train", "A cyclist", "A bus", "A boat", "A lorry", "A car"])
    distance = Fraction(speed * (hours * 60 + minutes), 60)
    time = f"{hours} hours" + (f" and {minutes} minutes" if minutes else "")
    if rng.random() < 0.5:
        steps = (
            f"The time is {Fraction(hours * 60 + minutes, 60)} hours.",
            f"Distance is speed times time: {speed} * {Fraction(hours * 60 + minutes, 60)} = {distance}.",
        )
        return solved(
            f"{who} goes {speed} km an hour for {time}. How far does it get?", *steps, answer=f"{distance} km"
        )
    steps = (
        f"The time is {Fraction(hours * 60 + minutes, 60)} hours.",
        f"Speed is distance over time: {distance} / ({Fraction(hours * 60 + minutes, 60)}) = {speed}.",
    )
    return solved(f"{who} covers {distance} km in {time}. What is its mean speed?", *steps, answer=f"{speed} km/h")


def meeting(rng: Random) -> str:
    a, b, hours = rng.randint(8, 60), rng.randint(8, 60), rng.randint(2, 9)
    gap, (one, two) = (a + b) * hours, rng.sample(NAMES, 2)
    steps = (
        f"Every hour they come {a} + {b} = {a + b} km nearer.",
        f"{gap} / {a + b} = {hours}.",
        f"By then {one} has gone {a} * {hours} = {a * hours} km.",
    )
    question = (
        f"{one} and {two} start {gap} km apart and ride towards each other, {one} at {a} km/h and {two} at {b} km/h. "
        "After how many hours do they meet?"
    )
    return solved(question, *steps, answer=hours)


def shared_work(rng: Random) -> str:
    (one, two), a, b = rng.sample(NAMES, 2), rng.randint(2, 15), rng.randint(2, 15)
    job = rng.choice(
        ["paint a fence", "fill the pool", "sort the mail", "dig the garden", "copy the archive", "tile the floor"]
    )
    rate = Fraction(1, a) + Fraction(1, b)
    steps = (
        f"In an hour {one} does 1/{a} and {two} 1/{b} of the work.",
        f"Together 1/{a} + 1/{b} = {rate}.",
        f"They need 1 / ({rate}) = {1 / rate} hours.",
    )
    return solved(
        f"{one} needs {a} hours to {job}, {two} needs {b}. How long do they need together?",
        *steps,
        answer=f"{1 / rate} hours",
    )


def ages(rng: Random) -> str:
    (one, two), young, gap, later = rng.sample(NAMES, 2), rng.randint(3, 30), rng.randint(2, 30), rng.randint(2, 20)
    total = 2 * young + gap + 2 * later
    steps = (
        f"Let x be the age of {two}. Then {one} is x + {gap}.",
        f"In {later} years the sum is x + {later} + x + {gap} + {later} = 2x + {gap + 2 * later}.",
        f"2x = {total} - {gap + 2 * later} = {2 * young}, so x = {young}.",
    )
    return solved(
        f"{one} is {gap} years older than {two}. In {later} years their ages add up to {total}. How old is {two} now?",
        *steps,
        answer=young,
    )


def sharing(rng: Random) -> str:
    parts, unit, thing = [rng.randint(1, 7) for _ in range(3)], rng.randint(4, 60), rng.choice(GOODS)
    people, total = rng.sample(NAMES, 3), sum(parts) * unit
    steps = [f"There are {' + '.join(map(str, parts))} = {sum(parts)} parts, each {total} / {sum(parts)} = {unit}."]
    steps += [f"{person} gets {part} * {unit} = {part * unit}." for person, part in zip(people, parts, strict=True)]
    ratio, shared = ":".join(map(str, parts)), f"{total} {thing}"
    question = f"{people[0]}, {people[1]} and {people[2]} share {shared} in the ratio {ratio}. How many does each get?"
    return solved(question, *steps, answer=", ".join(str(part * unit) for part in parts))


def recipe(rng: Random) -> str:
    people, more, grams = rng.choice([2, 3, 4, 6]), rng.choice([5, 7, 8, 9, 10, 12, 15]), rng.randint(5, 60) * 12
    food = rng.choice(["flour", "rice", "sugar", "beans", "lentils", "pasta", "potatoes", "cheese"])
    one = Fraction(grams, people)
    steps = f"One person needs {grams} / {people} = {one} g.", f"{more} people need {more} * {one} = {more * one} g."
    return solved(
        f"A dish for {people} people takes {grams} g of {food}. How much {food} do {more} people need?",
        *steps,
        answer=f"{more * one} g",
    )


def conversion(rng: Random) -> str:
    (large, small, factor), count = rng.choice(UNITS), rng.randint(2, 400)
    if rng.random() < 0.5:
        ask = rng.choice(["How many {s} are {n} {l}?", "Convert {n} {l} to {s}.", "Express {n} {l} in {s}."])
        return solved(
            ask.format(s=small, l=large, n=count),
            f"There are {factor} {small} to one of the {large}.",
            f"{count} * {factor} = {count * factor}.",
            answer=f"{count * factor} {small}",
        )
    rest = rng.randint(1, factor - 1)
    total = count * factor + rest
    steps = f"{total} / {factor} is {count}, with {rest} left over."
    return solved(f"Write {total} {small} as {large} and {small}.", steps, answer=f"{count} {large} and {rest} {small}")


def clock(rng: Random) -> str:
    start, length = rng.randint(0, 1439), rng.randint(20, 700)
    end = (start + length) % 1440
    what = rng.choice(["A film", "A flight", "A concert", "A shift", "A match", "A lecture"])
    steps = (
        f"{length} minutes are {length // 60} hours and {length % 60} minutes.",
        f"{start // 60:02d}:{start % 60:02d} and {length // 60}:{length % 60:02d} make {end // 60:02d}:{end % 60:02d}.",
    )
    return solved(
        f"{what} starts at {start // 60:02d}:{start % 60:02d} and takes {length} minutes. When does it end?",
        *steps,
        answer=f"{end // 60:02d}:{end % 60:02d}",
    )


def _money(cents: int) -> str:
    return f"${cents // 100}.{cents % 100:02d}"


STORIES: tuple[Family, ...] = (
    shopping, change, discount, interest, travel, meeting, shared_work, ages, sharing, recipe, conversion, clock,
)  # fmt: skip
