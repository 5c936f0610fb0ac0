"""The recipes of a study: each a few settings of the public commands, read from `configs/study/`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from flexo.errors import InputError

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
TAKEN = {"anchor", "models", "test", "valid", "final", "train"}  # names of other folders of a seed


@dataclass(frozen=True)
class Recipe:
    """One way to a model of all domains, or to one model a domain, and how that is measured.

    Each list holds settings for one command, in that command's words; the settings that all recipes share (text,
    anchor, seed, output) are added by `study_steps`. A recipe with only `of` and `measure` measures the parts of
    another recipe again.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    experts: tuple[str, ...] | None = None  # train_expert.py, one expert a domain, each in a process of its own
    specialists: tuple[str, ...] | None = None  # train_expert.py model=dense, one model a domain
    pooled: tuple[str, ...] | None = None  # train_expert.py model=mixture, one on all text, FLOPs as of `of`
    start: str | None = None  # the recipe whose expert files `experts` go on from
    embedding: tuple[str, ...] | None = None  # flexo-embed: the rows of `experts` start from its files
    overlap: float = 0.0  # share of an owner's windows that comes from the next owner's text
    longer: float | None = None  # the first domain's expert sees so many times the tokens; the others are those of `of`
    of: str | None = None  # the recipe whose parts, or whose model, are worked on; null: this one's own
    merge: tuple[str, ...] | None = None  # flexo-merge
    soup: float | None = None  # flexo-soup: the share of the anchor in the average
    btx: tuple[str, ...] | None = None  # flexo-btx
    rows: str | None = None  # of btx: the recipe whose merged model gives the rows
    router: tuple[str, ...] | None = None  # train_router.py, afterwards
    fit: tuple[str, ...] | None = None  # flexo-embed for every domain, then flexo-fit-router
    inside: bool = False  # of fit: measured in the model that `of` ends in, public text too, and not in the anchor
    proxies: bool = True  # of router: beside public text
    measure: tuple[str, ...] = ()  # flexo-eval
    active: tuple[int, ...] = ()  # of flexo-eval: also with so many active experts, where there are as many

    @property
    def leans_on(self) -> list[str]:
        """Names of the recipes that must come before this one."""
        return [name for name in (self.of, self.start, self.rows) if name]

    @property
    def makes_one(self) -> bool:
        """Whether it ends in one model of all domains."""
        return any(way is not None for way in (self.merge, self.soup, self.btx, self.pooled, self.router, self.fit))


@dataclass(frozen=True)
class Study:
    """The recipes to run, on which seeds and on how much text. See `configs/study/full.yaml`."""

    tokens: int  # seen in training by every expert and specialist
    router_tokens: int  # ... by every router that is trained afterwards
    max_bytes: int  # of held-out text measured, a domain
    seeds: tuple[int, ...]
    anchor: tuple[str, ...] = ()  # train_anchor.py
    anchor_each_seed: bool = False  # false: one anchor for all seeds
    sample: tuple[str, ...] = ()  # domains of the sample corpora, when no folder is given
    train: tuple[str, ...] = ()  # train_expert.py, for all recipes
    train_router: tuple[str, ...] = ()  # train_router.py, likewise
    choose: tuple[str, ...] = ()  # flexo-data proxies
    measure: tuple[str, ...] = ()  # flexo-eval, for all recipes
    recipes: dict[str, Recipe] = field(default_factory=dict)
    ablations: dict[str, Recipe] = field(default_factory=dict)  # run after the recipes of all seeds

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"study.seeds={list(self.seeds)}: expected one number or more, each once.")
        if twice := self.recipes.keys() & self.ablations.keys():
            raise InputError(f"study.ablations.{min(twice)}: there is a recipe of this name. Choose another.")
        before: dict[str, Recipe] = {}
        for name, recipe in self.all.items():
            where = f"study.{'recipes' if name in self.recipes else 'ablations'}.{name}"
            _check(where, name, recipe, before)
            before[name] = recipe

    @property
    def all(self) -> dict[str, Recipe]:
        return self.recipes | self.ablations

    def needed(self, only: Iterable[str]) -> set[str]:
        """The names of these recipes and of all recipes that they lean on."""
        found: set[str] = set()
        waiting = list(only)
        while waiting:
            name = waiting.pop()
            if name not in self.all:
                raise InputError(f"only: there is no recipe {name!r}. There are {', '.join(self.all)}.")
            if name not in found:
                found.add(name)
                waiting += self.all[name].leans_on
        return found


def _check(where: str, name: str, recipe: Recipe, before: dict[str, Recipe]) -> None:
    if not NAME.fullmatch(name) or name in TAKEN:
        raise InputError(
            f"{where}: not a name for a recipe. Use lower-case letters, digits, '_' and '-', and none of "
            f"{', '.join(sorted(TAKEN))}."
        )
    for other in recipe.leans_on:
        if other not in before:
            raise InputError(f"{where}: leans on {other!r}, which does not come before it.")
    if recipe.experts is None and recipe.specialists is None and recipe.of is None:
        raise InputError(
            f"{where}: there is nothing to train and nothing to start from. Give experts, specialists or of."
        )
    if recipe.experts is not None and recipe.specialists is not None:
        raise InputError(f"{where}: both experts and specialists. Make two recipes of it.")
    if recipe.longer is not None and (recipe.of is None or recipe.experts is None):
        raise InputError(f"{where}: longer needs experts, and of for the other domains'.")
    ways = sum(way is not None for way in (recipe.merge, recipe.soup, recipe.btx, recipe.pooled))
    if ways > 1:
        raise InputError(f"{where}: give one of merge, soup, btx and pooled.")
    if recipe.router is not None and not ways and not (recipe.of and before[recipe.of].makes_one):
        raise InputError(
            f"{where}: there is no model whose router could be trained. Give merge, btx, or as `of` a recipe with one."
        )
    if recipe.fit is not None and (ways or recipe.router is not None or recipe.embedding is not None):
        raise InputError(f"{where}: fit works on the merge that `of` names. Leave merge, router and embedding out.")
    if recipe.fit is not None and not (recipe.of and _has_routers(before[recipe.of])):
        raise InputError(
            f"{where}: there is no model whose router could be fitted. Give as `of` a recipe with merge or fit."
        )
    if recipe.inside and recipe.fit is None:
        raise InputError(f"{where}: inside says where fit is measured. Give fit.")
    if recipe.soup is not None and not 0 <= recipe.soup < 1:
        raise InputError(f"{where}.soup={recipe.soup}: expected the share of the anchor, from 0 up to 1.")
    if not 0 <= recipe.overlap < 1:
        raise InputError(f"{where}.overlap={recipe.overlap}: expected a share from 0 up to 1.")


def _has_routers(recipe: Recipe) -> bool:
    """Whether it ends in a merge of expert files."""
    return recipe.merge is not None or recipe.fit is not None
