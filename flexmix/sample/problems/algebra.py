"""Problems with letters in them: equations, products, derivatives, inequalities, sequences."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from flexmix.sample.problems.arithmetic import Family, solved


def linear_equation(rng: Random) -> str:
    x, a, b, name = (
        rng.randint(-20, 20),
        rng.choice([2, 3, 4, 5, 6, 7, 8, 9, 12]),
        rng.randint(-50, 50),
        rng.choice("xyznkt"),
    )
    left = f"{a}{name} {'+' if b >= 0 else '-'} {abs(b)}"
    ask = rng.choice(["Solve {} = {} for {}.", "If {} = {}, what is {}?", "Given {} = {}, find the value of {}."])
    move = f"Subtract {b} from" if b >= 0 else f"Add {-b} to"
    steps = (
        f"{move} both sides: {a}{name} = {a * x}.",
        f"Divide by {a}: {name} = {x}.",
        f"Check: {a} * ({x}) + ({b}) = {a * x + b}.",
    )
    return solved(ask.format(left, a * x + b, name), *steps, answer=f"{name} = {x}")


def two_equations(rng: Random) -> str:
    x, y, a, b = rng.randint(-12, 12), rng.randint(-12, 12), rng.randint(2, 6), rng.randint(2, 6)
    one, two = x + a * y, b * x - y
    steps = (
        f"From the first equation x = {one} - {a}y.",
        f"Put it into the second: {b} * ({one} - {a}y) - y = {two}, so {b * one} - {a * b + 1}y = {two}.",
        f"{a * b + 1}y = {b * one - two}, hence y = {y}.",
        f"x = {one} - {a} * ({y}) = {x}.",
    )
    ask = rng.choice(
        ["Solve the system x + {}y = {} and {}x - y = {}.", "Find x and y with x + {}y = {} and {}x - y = {}."]
    )
    return solved(ask.format(a, one, b, two), *steps, answer=f"x = {x}, y = {y}")


def quadratic(rng: Random) -> str:
    p, q = sorted(rng.randint(-12, 12) for _ in range(2))
    total, product = p + q, p * q
    middle = f" - {total}x" if total > 0 else f" + {-total}x" if total < 0 else ""
    last = f" + {product}" if product > 0 else f" - {-product}" if product < 0 else ""
    steps = (
        f"We need two numbers with sum {total} and product {product}.",
        f"They are {p} and {q}, so the left side is (x - ({p}))(x - ({q})).",
    )
    ask = rng.choice(
        ["Solve x^2{}{} = 0 by factoring.", "Find the roots of x^2{}{} = 0.", "For which x is x^2{}{} = 0?"]
    )
    return solved(ask.format(middle, last), *steps, answer=f"x = {p}" if p == q else f"x = {p} or x = {q}")


def expansion(rng: Random) -> str:
    a, b, c, d = (rng.choice([-7, -5, -4, -3, -2, 2, 3, 4, 5, 6, 9]) for _ in range(4))
    steps = (
        f"First terms: {a}x * {c}x = {a * c}x^2.",
        f"Outer and inner: {a * d}x and {b * c}x, together {a * d + b * c}x.",
        f"Last: {b} * {d} = {b * d}.",
    )
    ask = rng.choice(["Expand ({}x + ({}))({}x + ({})).", "Multiply out ({}x + ({}))({}x + ({}))."])
    answer = f"{a * c}x^2 + ({a * d + b * c})x + ({b * d})"
    return solved(ask.format(a, b, c, d), *steps, answer=answer)


def derivative(rng: Random) -> str:
    terms = sorted({rng.randint(1, 7): rng.randint(2, 12) for _ in range(3)}.items(), reverse=True)
    power = [f"{factor}x^{degree}" for degree, factor in terms]
    steps = [f"The derivative of {term} is {f * d}x^{d - 1}." for term, (d, f) in zip(power, terms, strict=True)]
    answer = " + ".join(f"{f * d}x^{d - 1}" for d, f in terms)
    ask = rng.choice(["Differentiate {}.", "What is the derivative of f(x) = {}?", "Find d/dx of {}."])
    return solved(ask.format(" + ".join(power)), "Use (x^n)' = n x^(n-1) term by term.", *steps, answer=answer)


def inequality(rng: Random) -> str:
    a, b, bound = rng.choice([-6, -5, -4, -3, -2, 2, 3, 4, 5, 7]), rng.randint(1, 40), rng.randint(-15, 15)
    right = a * bound + b
    turned = "The sign turns, as the divisor is negative" if a < 0 else "The sign stays"
    sign = "<" if a > 0 else ">"
    steps = f"Subtract {b}: {a}x < {right - b}.", f"Divide by {a}. {turned}: x {sign} {bound}."
    return solved(f"Solve the inequality {a}x + {b} < {right}.", *steps, answer=f"x {sign} {bound}")


def arithmetic_sequence(rng: Random) -> str:
    first, step, n = rng.randint(-30, 60), rng.choice([-9, -4, -3, 2, 3, 5, 7, 8, 11, 15]), rng.randint(10, 60)
    last = first + (n - 1) * step
    shown = ", ".join(str(first + i * step) for i in range(4))
    steps = [f"The difference is {step}.", f"Term {n} is {first} + {n - 1} * ({step}) = {last}."]
    if rng.random() < 0.5:
        return solved(f"What is term number {n} of the sequence {shown}, ...?", *steps, answer=last)
    total = n * (first + last) // 2
    steps.append(f"The sum of the first {n} terms is {n} * ({first} + ({last})) / 2 = {total}.")
    return solved(f"Add the first {n} terms of {shown}, ...", *steps, answer=total)


def geometric_sequence(rng: Random) -> str:
    first, ratio, n = rng.randint(1, 9), rng.randint(2, 5), rng.randint(5, 9)
    terms = [first * ratio**i for i in range(n)]
    ask = rng.choice(["Continue {}, ... to term {}.", "The sequence {}, ... is geometric. What is term {}?"])
    steps = [f"Each term is {ratio} times the one before."] + [f"{a} * {ratio} = {b}" for a, b in pairwise(terms[2:])]
    return solved(ask.format(", ".join(map(str, terms[:3])), n), *steps, answer=terms[-1])


ALGEBRA: tuple[Family, ...] = (
    linear_equation, two_equations, quadratic, expansion, derivative, inequality, arithmetic_sequence,
    geometric_sequence,
)  # fmt: skip
