"""The divergence of a text from public text, and the gain that trained experts say it brings."""

from __future__ import annotations

import json
import random
import re
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import pytest

import flexmix.commands.flexo_data
from flexmix.documents.corpus import read_documents
from flexmix.domains.expected_gain import KNOWN, Known, expected_gain, left_out_errors, line, measure_divergence
from flexmix.tokens.encoder import load_encoder
from flexmix.tokens.shard import prepare_shard
from flexo.errors import InputError
from tests.flexmix.text import write_jsonl
from tests.merge.tools import call

DOCS = Path(__file__).parents[3] / "docs/credit.md"
LINE = [Known(run, f"d{n}", n / 10, 0.05 + n / 5) for run in ("one", "other") for n in range(4)]


def texts(words: str, seed: int, count: int = 60) -> list[str]:
    dice = random.Random(seed)
    return [" ".join(dice.choices(words.split(), k=30)) for _ in range(count)]


PUBLIC, OWN = "the cat sat on a mat and saw one dog", "let x be a number then is too def return add"


def test_text_like_public_text_has_no_divergence_and_other_text_has_one(tiny_anchor: Path) -> None:
    encoder = load_encoder(tiny_anchor)
    like = measure_divergence(texts(PUBLIC, 1), texts(PUBLIC, 2), texts(PUBLIC, 3, 200), encoder)
    other = measure_divergence(texts(OWN, 1), texts(OWN, 2), texts(PUBLIC, 3, 200), encoder)
    fewer = measure_divergence(texts(OWN, 1), texts(OWN, 2), texts(PUBLIC, 3, 200), encoder, tokens=150)
    assert abs(like.share) < 0.02 < 0.3 < fewer.share < other.share < 1
    assert fewer.own_tokens == 150 and fewer.before == other.before
    with pytest.raises(InputError, match=r"own text: \d+ tokens in it"):
        measure_divergence(["x"], texts(OWN, 2), texts(PUBLIC, 3), encoder)


def test_the_forecast_is_the_line_and_its_interval_what_left_out_domains_were_missed_by() -> None:
    assert line(LINE) == pytest.approx((2, 0.05)) and line(LINE, 0) == pytest.approx((0.35,))
    assert left_out_errors(LINE) == pytest.approx([0] * 8, abs=1e-9)
    found = expected_gain(0.4, LINE)
    assert (found.expected, found.low, found.high) == pytest.approx((0.85, 0.85, 0.85))
    assert expected_gain(0.9, LINE).expected == 1, "nobody saves more bits than there are"
    off = [*LINE[:-1], Known("other", "d3", 0.3, 0.75)]
    errors = left_out_errors(off)
    assert errors[3] == pytest.approx(0, abs=1e-9), "neither run's d3 is known when d3 is forecast"
    assert errors[7] == pytest.approx(-0.1) and left_out_errors(off, 0)[3] == pytest.approx(0.25 - 0.65)
    found = expected_gain(0.3, off)
    assert found.high - found.expected == pytest.approx(max(map(abs, errors))), "80 % of 9 places is the largest of 8"


def test_the_page_says_what_the_forecast_is_worth() -> None:
    said = re.findall(
        r"^\| (\w+) \| (\w+) \| ([\d.]+) % \| ([\d.]+) % \| ([+-][\d.]+) \| ([+-][\d.]+) \|$", DOCS.read_text(), re.M
    )
    errors = zip(KNOWN, left_out_errors(), left_out_errors(degree=0), strict=True)
    assert sorted(said) == sorted(
        (k.run, k.domain, f"{k.divergence:.1%}"[:-1], f"{k.gain:.1%}"[:-1], f"{100 * e:+.1f}", f"{100 * m:+.1f}")
        for k, e, m in errors
    )
    means = (100 * fmean(map(abs, left_out_errors(degree=degree))) for degree in (1, 0))
    assert "misses by {:.1f} points in the mean; the mean of the other domains by {:.1f}".format(*means) in " ".join(
        DOCS.read_text().split()
    )


def test_the_command_reads_a_folder_and_public_text_and_says_how_sure_it_is(
    tiny_anchor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, seed in (("train", 1), ("test", 2)):
        write_jsonl(tmp_path / f"own/{split}.jsonl.gz", texts(OWN, seed))
    public = write_jsonl(tmp_path / "public.jsonl", texts(PUBLIC, 3, 200))
    output = tmp_path / "gain.json"
    options = ("--anchor", tiny_anchor, "--public", public, "--json", output)
    assert call(flexmix.commands.flexo_data.main, "gain", tmp_path / "own", *options) == 0
    kept, said = json.loads(output.read_text()), capsys.readouterr().out
    found = measure_divergence(texts(OWN, 1), texts(OWN, 2), read_documents(public), load_encoder(tiny_anchor))
    assert kept["divergence"] == found.share and kept["covered"] == 0.8
    assert kept["gain"] == asdict(expected_gain(found.share))
    assert f"known from {len(KNOWN)} experts of {len({one.run for one in KNOWN})} runs" in said
    assert "without a look at the text" in said and "note: a guess" in said and found.share > 0.5

    for split in ("train", "test"):
        prepare_shard(tmp_path / f"own/{split}.jsonl.gz", tiny_anchor, tmp_path / "cache")
        shard = next(path.parent for path in (tmp_path / "cache").glob(f"{split}-*/shard.json"))
        (tmp_path / "prepared").mkdir(exist_ok=True)
        shard.rename(tmp_path / "prepared" / split)
    assert call(flexmix.commands.flexo_data.main, "gain", tmp_path / "prepared", *options) == 0
    assert json.loads(output.read_text()) == kept, "what `flexo-data prepare` made says the same"
