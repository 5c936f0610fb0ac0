import pytest

from flexo.errors import InputError
from trainers.loop.trainer import PRECISIONS, TrainerOptions


@pytest.mark.parametrize("precision", ["bf16-mxed", "8", ""])
def test_an_unknown_precision_is_refused_with_those_there_are(precision: str) -> None:
    with pytest.raises(InputError, match=rf"run\.precision={precision}: expected one of auto, bf16-mixed"):
        TrainerOptions(precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_known_precision_is_taken(precision: str) -> None:
    assert TrainerOptions(precision=precision).precision == precision


def test_fp16_is_refused_for_want_of_loss_scaling() -> None:
    with pytest.raises(InputError, match="fp16 needs loss scaling"):
        TrainerOptions(precision="16-mixed")
