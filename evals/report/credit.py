"""The credit of owners for readers: a table as text, and tables and pictures of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from evals.credit.credit import Credit
from evals.matrix.results import markdown
from evals.matrix.seeds import Seeds, Spread
from evals.report.html_page import Td, maps, paragraph, table
from evals.report.pictures import picture_name
from evals.report.svg import Line, Picture, bars, chart, legend, sheet
from evals.report.tables import SHARE, spread_td

FIGURE = "{:+.4f}".format  # bits per byte saved
FAR = 0.1  # shares of credit and router mass that differ by more are named
TWINS = 0.5  # owners whose overlap is more are named
SHARES = ("share of the bits saved", "share of the router mass")
LEAVING = ("owners leave in the best order", "owners leave in the worst order")
SAID = (
    "Bits per byte saved against the public expert alone, mean over the pure domains; more is better. Shapley: the "
    "saving that an owner adds, mean over all orders of joining; the values of all owners add up to what the merge "
    "saves. Leave-one-out: the saving that is lost if this owner leaves. Alone: the saving with this owner as the only "
    "one. Router mass is the probability that the router gives an expert, whether or not that saves anything."
)

Figure = Callable[[Credit], Mapping[str, float]]


def credit_text(credit: Credit) -> str:
    """Markdown: what each owner adds, where router mass says otherwise, and the curve of leaving."""
    shapley, columns = credit.shapley(), credit.domains
    by_domain = {domain: credit.shapley(domain) for domain in columns}
    around = any(found.around is not None for found in shapley.values())
    last, first = credit.leave_one_out(), credit.alone()
    shares, mass = credit.credit_share(), credit.mass_share()
    header = ["bits per byte saved", "Shapley", *(["±"] if around else []), "leave-one-out", "alone"]
    header += ["share", "router mass", *(f"Shapley {domain}" for domain in columns)]
    rows = []
    for owner in credit.owners:
        value = shapley[owner]
        row = [owner, FIGURE(value.value), *([f"{value.around:.4f}"] if value.around is not None else [])]
        row += [FIGURE(last[owner]), FIGURE(first[owner]), SHARE(shares[owner]) if shares else "-", SHARE(mass[owner])]
        rows.append([*row, *(FIGURE(by_domain[domain][owner].value) for domain in columns)])
    order = credit.leaving()
    left = [str(len(credit.owners) - gone) for gone in range(len(credit.owners) + 1)]
    curves = [[f"{name} order", *(f"{bits:.3f}" for bits in credit.curve(order[name]))] for name in order]
    parts = [
        f"{credit.model}: {_how(credit)}.",
        markdown(header, rows).rstrip("\n"),
        "\n".join(_notes(credit)),
        markdown(["bits per byte with so many owners left", *left], curves).rstrip("\n"),
        "\n".join(f"{name} order of leaving: {', '.join(order[name])}" for name in order),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def credit_sections(seeds: Seeds) -> list[str]:
    """For each merged model with a credit: its table, its pictures and what each owner adds to each domain."""
    parts = []
    for model, credits in seeds.credits().items():
        parts += [paragraph(f"{model}: {_how(credits[0])}. {SAID}"), _owners(credits)]
        parts += [paragraph(note) for note in _notes(credits[0])] if len(credits) == 1 else []
        shares, *charts = credit_pictures(credits, seeds)
        parts += [legend(SHARES, False), maps([shares])]
        parts += [paragraph("Shapley values on each domain."), _by_domain(credits, seeds.columns)]
        parts += [paragraph(_leaving(credits)), legend(LEAVING, seeds.anchor is not None), maps(charts)]
    return parts


def credit_sheets(seeds: Seeds) -> dict[str, str]:
    """File name -> SVG: `credit-MODEL.svg` and `leaving-MODEL.svg` for each merged model with a credit."""
    files: dict[str, str] = {}
    for model, credits in seeds.credits().items():
        shares, *charts = credit_pictures(credits, seeds)
        files[picture_name("credit", model, files)] = sheet([shares], SHARES)
        files[picture_name("leaving", model, files)] = sheet(charts, LEAVING, seeds.anchor is not None)
    return files


def credit_pictures(credits: Sequence[Credit], seeds: Seeds) -> list[Picture]:
    """Shares of credit and of router mass, then the curve of leaving for the mean and each domain."""
    owners = credits[0].owners
    shares = [credit.credit_share() or dict.fromkeys(owners, 0.0) for credit in credits]
    series = [[fmean(share[owner] for share in found) for owner in owners] for found in (shares, _masses(credits))]
    pictures: list[Picture | None] = [bars("credit and router mass", owners, series)]
    places = list(range(len(owners), -1, -1))
    for domain in (None, *seeds.columns):
        curves = {
            name: [credit.curve(credit.leaving()[which], domain) for credit in credits]
            for name, which in zip(LEAVING, ("best", "worst"), strict=True)
        }
        lines = [Line(name, [Spread(values) for values in zip(*found, strict=True)]) for name, found in curves.items()]
        alone = fmean(credit.bits(frozenset(), domain) for credit in credits)
        pictures.append(chart(domain or "mean", places, lines, alone))
    return [picture for picture in pictures if picture is not None]


def _owners(credits: Sequence[Credit]) -> str:
    figures: dict[str, Figure] = {
        "Shapley": lambda credit: {owner: found.value for owner, found in credit.shapley().items()},
        "leave-one-out": Credit.leave_one_out,
        "alone": Credit.alone,
    }
    around = credits[0].shapley()
    rows = []
    for owner in credits[0].owners:
        cells = []
        for name, figure in figures.items():
            width = around[owner].around if name == "Shapley" and len(credits) == 1 else None
            spread = Spread(tuple(figure(credit)[owner] for credit in credits))
            cells.append(spread_td(spread, FIGURE, "" if width is None else f"±{width:.4f} (95 %)"))
        shares = [share[owner] for credit in credits if (share := credit.credit_share())]
        cells.append(spread_td(Spread(tuple(shares)) if shares else None, SHARE))
        cells.append(spread_td(Spread(tuple(mass[owner] for mass in _masses(credits))), SHARE))
        rows.append((owner, cells))
    return table(["owner", *figures, *SHARES], rows)


def _by_domain(credits: Sequence[Credit], columns: Sequence[str]) -> str:
    found = {domain: [credit.shapley(domain) for credit in credits] for domain in columns}
    base = {domain: fmean(credit.bits(frozenset(), domain) for credit in credits) for domain in columns}
    rows: list[tuple[str, list[Td]]] = []
    for owner in credits[0].owners:
        spreads = {domain: Spread(tuple(of[owner].value for of in found[domain])) for domain in columns}
        rows.append(
            (
                owner,
                [spread_td(spreads[d], FIGURE, share=-spreads[d].mean / base[d], own=owner == d) for d in columns],
            )
        )
    return table(["owner", *columns], rows)


def _masses(credits: Sequence[Credit]) -> list[dict[str, float]]:
    return [credit.mass_share() for credit in credits]


def _how(credit: Credit) -> str:
    count = len(credit.owners)
    if credit.orders is None:
        return f"exact, over all {2**count} sets of its {count} owners" if count > 1 else "one owner"
    return (
        f"estimated from {len(credit.orders)} of the orders in which its {count} owners can join (seed {credit.seed}; "
        "every second order is the reverse of the one before); ± is half a 95 % interval, Student's t over the pairs"
    )


def _notes(credit: Credit) -> list[str]:
    """Owners whose router mass is far from their credit, and owners who replace each other."""
    shares, mass = credit.credit_share(), credit.mass_share()
    notes = [] if shares else ["All owners together save nothing: there is no credit to share."]
    for owner, share in (shares or {}).items():
        if abs(mass[owner] - share) > FAR:
            harm = " This expert does harm." if share < 0 else ""
            notes.append(
                f"{owner}: {share:.0%} of the bits saved, but {mass[owner]:.0%} of the owners' router mass.{harm}"
            )
    for (one, other), lost in credit.overlaps().items():
        if lost > TWINS:
            notes.append(
                f"{one} and {other} replace each other: with both, {min(lost, 1.0):.0%} of the smaller one's value "
                "alone is lost. Leave-one-out gives neither of them what they add together."
            )
    return notes


def _leaving(credits: Sequence[Credit]) -> str:
    said = (
        "Bits per byte while owners leave one after the other, by how many are left. The order with the lowest and the "
        "highest mean over the whole curve"
        f"{'' if credits[0].orders is None else ', of those sampled'}, found for the mean over the domains"
    )
    if len(credits) > 1:
        return f"{said}, for each seed by itself."
    return f"{said}. " + " ".join(
        f"The {name} order: {', '.join(order)}." for name, order in credits[0].leaving().items()
    )
