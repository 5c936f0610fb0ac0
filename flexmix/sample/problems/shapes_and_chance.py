"""Problems about shapes and about chance: areas, volumes, angles; urns, dice, choices."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

from flexmix.sample.problems.arithmetic import Family, solved


def rectangle(rng: Random) -> str:
    a, b, place = (
        rng.randint(2, 90),
        rng.randint(2, 90),
        rng.choice(["garden", "room", "field", "sheet of paper", "playground", "roof"]),
    )
    unit = "cm" if place.startswith("sheet") else "m"
    if rng.random() < 0.5:
        step = f"The area is {a} * {b} = {a * b}."
        return solved(
            f"A {place} is {a} {unit} long and {b} {unit} wide. What is its area?", step, answer=f"{a * b} {unit}^2"
        )
    steps = f"Half the perimeter is {a} + {b} = {a + b}.", f"Twice that is {2 * (a + b)}."
    return solved(
        f"A rectangular {place} measures {a} {unit} by {b} {unit}. How long is its edge all around?",
        *steps,
        answer=f"{2 * (a + b)} {unit}",
    )


def right_triangle(rng: Random) -> str:
    m, n = sorted(rng.sample(range(1, 9), 2), reverse=True)
    scale = rng.randint(1, 6)
    a, b, c = (scale * side for side in (m * m - n * n, 2 * m * n, m * m + n * n))
    if rng.random() < 0.5:
        steps = f"By Pythagoras c^2 = {a}^2 + {b}^2 = {a * a} + {b * b} = {c * c}.", f"The root of {c * c} is {c}."
        return solved(f"The legs of a right triangle are {a} and {b}. How long is the hypotenuse?", *steps, answer=c)
    found = (
        f"The other leg squared is {c}^2 - {a}^2 = {c * c} - {a * a} = {b * b}.",
        f"The leg is {b}.",
        f"The area is {a} * {b} / 2 = {a * b // 2}.",
    )
    return solved(f"A right triangle has hypotenuse {c} and one leg {a}. What is its area?", *found, answer=a * b // 2)


def circle(rng: Random) -> str:
    radius = rng.randint(2, 120)
    if rng.random() < 0.5:
        steps = (
            "The area is pi * r^2.",
            f"{radius}^2 = {radius * radius}.",
            f"With pi = 3.1416 that is about {3.1416 * radius * radius:.1f}.",
        )
        return solved(
            f"What is the area of a circle with radius {radius} cm?", *steps, answer=f"{radius * radius} * pi cm^2"
        )
    steps = (
        "The circumference is 2 * pi * r.",
        f"2 * {radius} = {2 * radius}.",
        f"With pi = 3.1416 that is about {3.1416 * 2 * radius:.1f}.",
    )
    return solved(
        f"A wheel has a radius of {radius} cm. How far does it roll in one turn?",
        *steps,
        answer=f"{2 * radius} * pi cm",
    )


def box(rng: Random) -> str:
    a, b, c = (rng.randint(2, 40) for _ in range(3))
    volume, surface = a * b * c, 2 * (a * b + a * c + b * c)
    thing = rng.choice(["box", "tank", "brick", "crate"])
    steps = f"Volume: {a} * {b} * {c} = {volume}.", f"Surface: 2 * ({a * b} + {a * c} + {b * c}) = {surface}."
    return solved(
        f"A {thing} measures {a} by {b} by {c} cm. Find its volume and its surface.",
        *steps,
        answer=f"{volume} cm^3 and {surface} cm^2",
    )


def angles(rng: Random) -> str:
    a, b = rng.randint(15, 85), rng.randint(15, 85)
    steps = "The angles of a triangle add up to 180 degrees.", f"180 - {a} - {b} = {180 - a - b}."
    ask = rng.choice(
        [
            "Two angles of a triangle are {} and {} degrees. What is the third?",
            "In a triangle ABC the angle at A is {} degrees and the one at B is {}. Find the angle at C.",
        ]
    )
    return solved(ask.format(a, b), *steps, answer=f"{180 - a - b} degrees")


def urn(rng: Random) -> str:
    (one, two), a, b = (
        rng.sample(["red", "blue", "green", "white", "black", "yellow"], 2),
        rng.randint(2, 15),
        rng.randint(2, 15),
    )
    total = a + b
    if rng.random() < 0.5:
        return solved(
            f"A bag holds {a} {one} and {b} {two} balls. One is drawn. How likely is {one}?",
            f"{a} of {total} balls are {one}.",
            f"The probability is {a}/{total}.",
            answer=Fraction(a, total),
        )
    both = Fraction(a, total) * Fraction(a - 1, total - 1)
    steps = (
        f"The first is {one} with probability {a}/{total}.",
        f"Then {a - 1} of {total - 1} balls are {one}.",
        f"{a}/{total} * {a - 1}/{total - 1} = {both}.",
    )
    return solved(
        f"From {a} {one} and {b} {two} balls two are drawn without putting back. How likely are both {one}?",
        *steps,
        answer=both,
    )


def two_dice(rng: Random) -> str:
    target, sides = rng.randint(2, 16), rng.choice([4, 6, 8, 10, 12])
    target = min(target, 2 * sides)
    pairs = [(i, target - i) for i in range(1, sides + 1) if 1 <= target - i <= sides]
    steps = (
        f"There are {sides} * {sides} = {sides * sides} pairs.",
        f"The good ones are {', '.join(map(str, pairs))}: {len(pairs)}.",
    )
    return solved(
        f"Two dice with {sides} faces are thrown. What is the probability of the sum {target}?",
        *steps,
        answer=Fraction(len(pairs), sides * sides),
    )


def choices(rng: Random) -> str:
    n, k = rng.randint(4, 14), rng.randint(2, 4)
    if rng.random() < 0.5:
        top = " * ".join(str(n - i) for i in range(k))
        steps = (
            f"In order there are {top} = {math.perm(n, k)} ways.",
            f"Each group is counted {k}! = {math.factorial(k)} times.",
            f"{math.perm(n, k)} / {math.factorial(k)} = {math.comb(n, k)}.",
        )
        return solved(f"How many teams of {k} can be chosen from {n} players?", *steps, answer=math.comb(n, k))
    top = " * ".join(str(n - i) for i in range(k))
    return solved(
        f"In how many ways can the first {k} places of a race with {n} runners be taken?",
        f"{top} = {math.perm(n, k)}.",
        answer=math.perm(n, k),
    )


SHAPES_AND_CHANCE: tuple[Family, ...] = (
    rectangle, right_triangle, circle, box, angles, urn, two_dice, choices,
)  # fmt: skip
