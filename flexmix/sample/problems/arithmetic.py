"""Problems about numbers: the four operations, fractions, primes, remainders, bases, means."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from random import Random

Family = Callable[[Random], str]


def solved(question: str, *steps: str, answer: object) -> str:
    """The text of one problem."""
    return "\n".join([question, "", *steps, f"The answer is {answer}."])


def addition(rng: Random) -> str:
    count, top = rng.randint(2, 5), 10 ** rng.randint(2, 5)
    terms = [rng.randint(11, top) for _ in range(count)]
    total, steps = terms[0], []
    for term in terms[1:]:
        steps.append(f"{total} + {term} = {total + term}")
        total += term
    listed = " + ".join(map(str, terms))
    ask = rng.choice(["Work out {}.", "What is {}?", "Add the numbers: {}", "Find the sum {}.", "Calculate {}."])
    return solved(ask.format(listed), *steps, answer=total)


def subtraction(rng: Random) -> str:
    a, b = rng.randint(100, 99_999), rng.randint(100, 99_999)
    ask = rng.choice(["What is {a} - {b}?", "Take {b} away from {a}.", "How much more is {a} than {b}?"])
    if a < b:
        step = f"{b} is larger than {a}, so the result is negative: {a} - {b} = -({b} - {a}) = -{b - a}."
    else:
        rounded = round(b, -2)
        step = f"{a} - {rounded} = {a - rounded}; correct by {rounded} - {b} = {rounded - b}: {a - b}."
    return solved(ask.format(a=a, b=b), step, answer=a - b)


def multiplication(rng: Random) -> str:
    a, b = rng.randint(12, 999), rng.randint(12, 99)
    tens, ones = b // 10 * 10, b % 10
    ask = rng.choice(
        ["What is {} times {}?", "Multiply {} by {}.", "Compute {} * {}.", "Find the product of {} and {}."]
    )
    steps = (f"Split {b} into {tens} + {ones}.", f"{a} * {tens} = {a * tens}", f"{a} * {ones} = {a * ones}")
    return solved(ask.format(a, b), *steps, f"{a * tens} + {a * ones} = {a * b}", answer=a * b)


def long_division(rng: Random) -> str:
    divisor, number = rng.randint(3, 29), rng.randint(100, 99_999)
    steps, rest = [], 0
    for digit in str(number):
        value = rest * 10 + int(digit)
        steps.append(f"Bring down {digit}: {value} = {value // divisor} * {divisor} + {value % divisor}.")
        rest = value % divisor
    ask = rng.choice(["Divide {} by {}, with remainder.", "What are quotient and remainder of {} / {}?"])
    answer = f"{number // divisor} remainder {rest}"
    return solved(ask.format(number, divisor), *steps, answer=answer)


def order_of_operations(rng: Random) -> str:
    a, b, c, d = (rng.randint(2, 30) for _ in range(4))
    ask = rng.choice(["Evaluate {}.", "What is the value of {}?", "Simplify {}."])
    if rng.random() < 0.5:
        steps = f"Products first: {b} * {c} = {b * c}.", f"{a} + {b * c} - {d} = {a + b * c - d}."
        return solved(ask.format(f"{a} + {b} * {c} - {d}"), *steps, answer=a + b * c - d)
    steps = (
        f"Brackets first: {a} + {b} = {a + b} and {c} - {d} = {c - d}.",
        f"{a + b} * ({c - d}) = {(a + b) * (c - d)}.",
    )
    return solved(ask.format(f"({a} + {b}) * ({c} - {d})"), *steps, answer=(a + b) * (c - d))


def fraction_sum(rng: Random) -> str:
    a, b = (Fraction(rng.randint(1, 19), rng.randint(2, 20)) for _ in range(2))
    sign = rng.choice("+-")
    common = math.lcm(a.denominator, b.denominator)
    x, y = a.numerator * common // a.denominator, b.numerator * common // b.denominator
    top, result = (x + y, a + b) if sign == "+" else (x - y, a - b)
    steps = [f"The common denominator of {a.denominator} and {b.denominator} is {common}."]
    steps += [f"{a} = {x}/{common} and {b} = {y}/{common}.", f"{x}/{common} {sign} {y}/{common} = {top}/{common}."]
    if str(result) != f"{top}/{common}":
        steps.append(f"In lowest terms this is {result}.")
    ask = rng.choice(["Calculate {} as a fraction.", "What is {}? Simplify.", "Write {} as one fraction."])
    return solved(ask.format(f"{a} {sign} {b}"), *steps, answer=result)


def fraction_product(rng: Random) -> str:
    a, b = (Fraction(rng.randint(1, 24), rng.randint(2, 25)) for _ in range(2))
    if rng.random() < 0.5:
        steps = [f"Dividing by {b} is multiplying by {b.denominator}/{b.numerator}."]
        top, bottom, result, sign = a.numerator * b.denominator, a.denominator * b.numerator, a / b, "/"
    else:
        steps = ["Multiply the numerators and the denominators."]
        top, bottom, result, sign = a.numerator * b.numerator, a.denominator * b.denominator, a * b, "*"
    common = math.gcd(top, bottom)
    steps += [
        f"This gives {top}/{bottom}.",
        f"Both are divisible by {common}: {result}." if common > 1 else "It is in lowest terms.",
    ]
    return solved(f"Find ({a}) {sign} ({b}).", *steps, answer=result)


def percentage(rng: Random) -> str:
    share, whole = rng.choice([5, 8, 12, 15, 20, 25, 30, 35, 40, 60, 75, 90]), rng.randint(2, 400) * 10
    part = Fraction(share * whole, 100)
    ask = rng.choice(["What is {}% of {}?", "Find {} percent of {}.", "Calculate {} % of the number {}."])
    steps = (
        f"1% of {whole} is {_decimal(Fraction(whole, 100))}.",
        f"{share} * {_decimal(Fraction(whole, 100))} = {_decimal(part)}.",
    )
    return solved(ask.format(share, whole), *steps, answer=_decimal(part))


def prime_factors(rng: Random) -> str:
    number = rng.randint(30, 9_999)
    rest, divisor, found, steps = number, 2, [], []
    while divisor * divisor <= rest:
        if rest % divisor == 0:
            steps.append(f"{rest} = {divisor} * {rest // divisor}")
            found.append(divisor)
            rest //= divisor
        else:
            divisor += 1
    found.append(rest)
    if len(found) == 1:
        steps = [f"No prime up to {math.isqrt(number)} divides {number}, so it is prime."]
    ask = rng.choice(["Write {} as a product of primes.", "Factor {}.", "What is the prime factorisation of {}?"])
    return solved(ask.format(number), *steps, answer=" * ".join(map(str, found)))


def common_divisor(rng: Random) -> str:
    factor = rng.randint(2, 40)
    a, b = factor * rng.randint(3, 60), factor * rng.randint(3, 60)
    x, y, steps = max(a, b), min(a, b), []
    while y:
        steps.append(f"{x} = {x // y} * {y} + {x % y}")
        x, y = y, x % y
    if rng.random() < 0.6:
        return solved(
            f"Find the greatest common divisor of {a} and {b}.",
            "Divide with remainder until none is left.",
            *steps,
            answer=x,
        )
    steps.append(f"The greatest common divisor is {x}; the least common multiple is {a} * {b} / {x}.")
    return solved(f"What is the least common multiple of {a} and {b}?", *steps, answer=a * b // x)


def powers(rng: Random) -> str:
    base, m, n = rng.randint(2, 9), rng.randint(2, 5), rng.randint(2, 4)
    if rng.random() < 0.5:
        steps = f"Equal bases: the exponents add up, {m} + {n} = {m + n}.", f"{base}^{m + n} = {base ** (m + n)}."
        return solved(f"Simplify {base}^{m} * {base}^{n}.", *steps, answer=base ** (m + n))
    steps = f"The exponents are multiplied: {m} * {n} = {m * n}.", f"{base}^{m * n} = {base ** (m * n)}."
    return solved(f"What is ({base}^{m})^{n}?", *steps, answer=base ** (m * n))


def remainder(rng: Random) -> str:
    base, exponent, modulus = rng.randint(2, 30), rng.randint(3, 40), rng.randint(5, 40)
    steps, value, square, bits = [], 1, base % modulus, exponent
    while bits:
        if bits & 1:
            steps.append(f"Multiply {value} by {square}: {value * square % modulus} mod {modulus}.")
            value = value * square % modulus
        bits >>= 1
        if bits:
            steps.append(f"Square {square}: {square * square % modulus} mod {modulus}.")
            square = square * square % modulus
    return solved(f"What is {base}^{exponent} mod {modulus}?", "Square and multiply.", *steps, answer=value)


def number_base(rng: Random) -> str:
    number, base = rng.randint(10, 4_095), rng.choice([2, 3, 5, 8, 16])
    digits, rest, steps = "", number, []
    while rest:
        digits = "0123456789ABCDEF"[rest % base] + digits
        steps.append(f"{rest} = {rest // base} * {base} + {rest % base}")
        rest //= base
    ask = rng.choice(["Write {} in base {}.", "Convert the decimal number {} to base {}."])
    return solved(ask.format(number, base), *steps, "Read the remainders from the last to the first.", answer=digits)


def rounding(rng: Random) -> str:
    number, places = Fraction(rng.randint(10_000, 9_999_999), 1000), rng.choice([0, 1, 2])
    low = Fraction(math.floor(number * 10**places), 10**places)
    high = low + Fraction(1, 10**places)
    near = high if number - low >= high - number else low
    step = f"{_decimal(number)} lies between {_decimal(low)} and {_decimal(high)} and is nearer to {_decimal(near)}."
    what = ["the nearest integer", "one decimal place", "two decimal places"][places]
    return solved(f"Round {_decimal(number)} to {what}.", step, answer=_decimal(near))


def mean_and_median(rng: Random) -> str:
    values = [rng.randint(1, 99) for _ in range(rng.choice([5, 7, 9]))]
    ordered, total = sorted(values), sum(values)
    mean = Fraction(total, len(values))
    listed = ", ".join(map(str, values))
    steps = (
        f"Sorted: {', '.join(map(str, ordered))}.",
        f"The middle value is {ordered[len(values) // 2]}.",
        f"The sum is {total}; {total} / {len(values)} = {mean}.",
    )
    ask = rng.choice(["Find the mean and the median of {}.", "What are median and mean of the data {}?"])
    return solved(ask.format(listed), *steps, answer=f"mean {mean}, median {ordered[len(values) // 2]}")


def _decimal(value: Fraction) -> str:
    return f"{float(value):.3f}".rstrip("0").rstrip(".")


NUMBERS: tuple[Family, ...] = (
    addition, subtraction, multiplication, long_division, order_of_operations, fraction_sum, fraction_product,
    percentage, prime_factors, common_divisor, powers, remainder, number_base, rounding, mean_and_median,
)  # fmt: skip
