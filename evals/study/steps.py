"""From recipes to steps: which command makes which file of a study's folder, the most important files first.

    for step in study_steps(study, text, "test", anchor_given=False):
        print(shlex.join(step.command))

Commands run inside the study's folder, and all paths are relative to it:

    corpora, anchor               links to the given folders, or made here
    proxies/DOMAIN.jsonl.gz       public documents like a domain's
    seed0/RECIPE/DOMAIN.pt        expert files; seed0/RECIPE/DOMAIN/ for dense specialists
    seed0/models/RECIPE/          the model that a recipe makes
    seed0/SPLIT/RECIPE.json       its results, a file of flexo-eval
    NAME.log                      beside each of them, the output of its command
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evals.scoring.held_out import PUBLIC
from evals.study.folder import CORPORA, StudyText
from evals.study.recipe import Recipe, Study

CACHE = "cache"
NO_TEXT = ("null", "true", "false", "nan", "inf")  # words that Hydra does not read as text


@dataclass(frozen=True)
class Step:
    """One run of one command."""

    makes: str  # a file or folder that appears whole or not at all
    command: tuple[str, ...]
    needs: tuple[str, ...]  # files and folders that other steps make
    recipe: str = ""
    measures: bool = False

    @property
    def name(self) -> str:
        """`makes` without the ending of a file."""
        folder, slash, last = self.makes.rpartition("/")
        return folder + slash + last.partition(".")[0]

    @property
    def log(self) -> str:
        return f"{self.name}.log"

    @property
    def alike(self) -> str:
        """The same for steps that take about the same time."""
        return f"{self.recipe} {self.command[0]}"


def study_steps(
    study: Study, text: StudyText, split: str, anchor_given: bool, only: Sequence[str] | None = None
) -> list[Step]:
    """All steps of a study: the recipes of every seed, then the ablations of every seed.

    Args:
        study: the recipes and how much of everything.
        text: the text that it reads.
        split: the split that is measured.
        anchor_given: whether the study's folder holds an anchor already; otherwise a step trains one.
        only: names of recipes; the recipes that they lean on are made too, but not measured. None: all.

    Returns:
        The steps, each after all that it needs.
    """
    needed = study.needed(only) if only else set(study.all)
    wanted = set(only) if only else needed
    steps: dict[str, Step] = {}
    for group in (study.recipes, study.ablations):
        for seed in study.seeds:
            seed_steps = _Seed(study, text, split, anchor_given, seed)
            for name in group:
                if name in needed:
                    made = seed_steps.steps(name, group[name])
                    steps |= {step.makes: step for step in made if name in wanted or not step.measures}
    return list(steps.values())


class _Seed:
    """The steps of one seed."""

    def __init__(self, study: Study, text: StudyText, split: str, anchor_given: bool, seed: int) -> None:
        self.study, self.text, self.split, self.anchor_given, self.seed = study, text, split, anchor_given, seed
        self.folder = f"seed{seed}"
        own = study.anchor_each_seed and not anchor_given
        self.anchor = f"{self.folder}/anchor" if own else "anchor"
        self.shared = ("seed=" + str(seed), f"data.cache={CACHE}")

    def steps(self, name: str, recipe: Recipe) -> Iterator[Step]:
        if not self.anchor_given:
            text, seed = f"data.path={CORPORA}/{PUBLIC}", self.seed if self.study.anchor_each_seed else 0
            options = (text, f"output={self.anchor}", f"seed={seed}", f"data.cache={CACHE}", *self.study.anchor)
            yield Step(self.anchor, ("train_anchor", *options), (), "anchor")
        embedded = recipe.embedding if recipe.fit is None else recipe.fit
        if embedded is not None:
            yield from (self._embedding(name, recipe, domain, embedded) for domain in self._embedded(recipe))
        if recipe.experts is not None or recipe.specialists is not None:
            trained = self.text.domains[:1] if recipe.longer is not None else self.text.domains
            yield from (self._part(name, recipe, domain) for domain in trained)
        yield from self._whole(name, recipe)
        yield self._measured(name, recipe)

    def parts(self, name: str) -> dict[str, str]:
        """Domain -> the expert file or specialist that a recipe merges or averages."""
        recipe = self.study.all[name]
        if recipe.experts is None and recipe.specialists is None:
            assert recipe.of is not None, "checked with the recipe"
            return self.parts(recipe.of)
        end = "" if recipe.specialists is not None else ".pt"
        own = {domain: f"{self.folder}/{name}/{domain}{end}" for domain in self.text.domains}
        if recipe.longer is not None and recipe.of is not None:
            first = self.text.domains[0]
            return self.parts(recipe.of) | {first: own[first]}
        return own

    def _embedded(self, recipe: Recipe) -> tuple[str, ...]:
        """The domains whose embeddings are made; that of public text comes with the anchor unless `inside` is set."""
        return (PUBLIC, *self.text.domains) if recipe.inside else tuple(self.text.domains)

    def _embedding(self, name: str, recipe: Recipe, domain: str, options: Sequence[str]) -> Step:
        made = self._embedding_of(name, domain)
        command = ("flexo-embed", f"{CORPORA}/{domain}", "--anchor", self.anchor, "-o", made, "--cache", CACHE)
        inside = (f"{self.folder}/models/{recipe.of}",) if recipe.inside else ()
        where = ("--model", *inside) if inside else ()
        return Step(made, (*command, *where, "--domain", domain, *options), (self.anchor, *inside), name)

    def _embedding_of(self, name: str, domain: str) -> str:
        return f"{self.folder}/{name}/{domain}-embedding.safetensors"

    def _part(self, name: str, recipe: Recipe, domain: str) -> Step:
        output = f"{self.folder}/{name}/{domain}{'' if recipe.specialists is not None else '.pt'}"
        options, needs = [f"output={output}", *self.shared], [self.anchor]
        tokens = self.study.tokens
        if recipe.longer is not None:
            tokens = round(tokens * recipe.longer)
        options += [f"data.tokens={tokens}", *self.study.train]
        options += ["model=dense", *recipe.specialists] if recipe.specialists is not None else recipe.experts or ()
        if recipe.start is not None:
            start = self.parts(recipe.start)[domain]
            options.append(f"model.start={start}")
            needs.append(start)
        if recipe.embedding is not None:
            embedding = self._embedding_of(name, domain)
            options.append(f"model.embedding={embedding}")
            needs.append(embedding)
        command = ("train_expert", *self._text(domain, recipe.overlap), f"anchor.path={self.anchor}", *options)
        return Step(output, command, tuple(needs), name)

    def _text(self, domain: str, overlap: float) -> list[str]:
        """Settings that name an owner's text; with an overlap, part of it is the next owner's."""
        text = self.text
        held_out = "valid" if f"{domain}/valid" in text.files else "test"  # only watched: no setting depends on it
        files = [f"domain.train={text.inside(domain, 'train')}", f"domain.test={text.inside(domain, held_out)}"]
        if overlap:
            other = text.domains[(text.domains.index(domain) + 1) % len(text.domains)]
            files[0] = "domain.train=null"
            files.append(_mixture((domain, other), (1 - overlap, overlap)))
        return ["+domain=local", _name(domain), *files]

    def _whole(self, name: str, recipe: Recipe) -> Iterator[Step]:
        """The steps from parts to one model, and the training of its router."""
        output = f"{self.folder}/models/{name}"
        before = output if recipe.router is None else f"{self.folder}/{name}/start"
        parts = tuple(self.parts(name).values())
        needs, anchor = [self.anchor, *parts], ("--anchor", self.anchor)
        command: tuple[str, ...] = ()
        if recipe.merge is not None:
            command = ("flexo-merge", *parts, "-o", before, *anchor, "--no-check", *recipe.merge)  # measured anyway
        elif recipe.soup is not None:
            models = dict.fromkeys(parts, 1.0)
            if recipe.soup:
                models = {self.anchor: recipe.soup / (1 - recipe.soup) * len(parts)} | models
            weights = ",".join(f"{weight:g}" for weight in models.values())
            command = ("flexo-soup", *models, "-o", before, "--weights", weights)
        elif recipe.btx is not None:
            rows = ("--seed", str(self.seed))
            if recipe.rows is not None:
                needs.append(f"{self.folder}/models/{recipe.rows}")
                rows = ("--rows", needs[-1])
            command = ("flexo-btx", *parts, "-o", before, *anchor, *rows, *recipe.btx)
        elif recipe.pooled is not None:
            text = ("+domain=local", _name(name), "domain.train=null", _mixture(self.text.domains))
            options = (f"anchor.path={self.anchor}", f"output={before}", *self.shared, *self.study.train)
            match = f"model.match=[{','.join(parts)}]"
            command = ("train_expert", *text, *options, "model=mixture", match, *recipe.pooled)
        elif recipe.router is not None:
            before = f"{self.folder}/models/{recipe.of}"
        elif recipe.fit is not None:
            merged = f"{self.folder}/models/{recipe.of}"
            embeddings = [self._embedding_of(name, domain) for domain in self._embedded(recipe)]
            needs = [self.anchor, merged, *embeddings]
            command = ("flexo-fit-router", merged, *embeddings, "-o", output, *anchor)
        if command:
            yield Step(before, command, tuple(needs), name)
        if recipe.router is not None:
            yield from self._router(name, recipe, before, output)

    def _router(self, name: str, recipe: Recipe, merged: str, output: str) -> Iterator[Step]:
        chosen = {domain: f"proxies/{domain}.jsonl.gz" for domain in self.text.domains} if recipe.proxies else {}
        for domain, path in chosen.items():
            command = ("flexo-data", "proxies", f"{CORPORA}/{domain}", "--public", f"{CORPORA}/{PUBLIC}", "-o", path)
            yield Step(path, (*command, *self.study.choose), (), "proxies")
        options = (f"merged={merged}", f"output={output}", f"anchor.path={self.anchor}", *self.shared)
        proxies = [f"+proxies={{{','.join(f'{domain}:{path}' for domain, path in chosen.items())}}}"] if chosen else []
        tokens = f"data.tokens={self.study.router_tokens}"
        training = ("train_router", *options, tokens, *proxies, *self.study.train_router, *(recipe.router or ()))
        yield Step(output, training, (merged, self.anchor, *chosen.values()), name)

    def _measured(self, name: str, recipe: Recipe) -> Step:
        """Measures the model of a recipe, or its parts if it makes none, beside the anchor."""
        output = f"{self.folder}/{self.split}/{name}.json"
        models = {name: f"{self.folder}/models/{name}"}
        if not recipe.makes_one:
            models = {f"{recipe.of or name} {domain}": path for domain, path in self.parts(name).items()}
        named = [f"{row}={path}" for row, path in models.items()]
        options = ["--data", CORPORA, "--domains", ",".join((PUBLIC, *self.text.domains)), "--split", self.split]
        options += ["--max-bytes", str(self.study.max_bytes), "--cache", f"{CACHE}/measured", "--seed", str(self.seed)]
        options += ["--anchor", self.anchor, "--no-pairs", "--json", output]
        if active := [number for number in recipe.active if number <= len(self.text.domains) + 1]:
            options += ["--active", ",".join(map(str, active))]
        command = ("flexo-eval", *named, *options, *self.study.measure, *recipe.measure)
        return Step(output, command, (self.anchor, *models.values()), name, measures=True)


def _name(domain: str) -> str:
    """A domain's name as a setting; without quotes, 2024 or 1e5 would be numbers."""
    quote = "" if domain.isalpha() and domain not in NO_TEXT else "'"
    return f"domain.name={quote}{domain}{quote}"


def _mixture(domains: Sequence[str], weights: Sequence[float] | None = None) -> str:
    """Text of several owners as a setting of `data.mixture`; without weights, every owner's counts the same."""
    pairs = zip(domains, weights or [1.0] * len(domains), strict=True)
    return f"data.mixture=[{','.join(f'{{path:{CORPORA}/{name},weight:{weight:g}}}' for name, weight in pairs)}]"
