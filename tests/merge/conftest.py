"""What tests of merging have in common."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges here run no model unless a test asks for it: that starts a process, which takes seconds."""
    monkeypatch.setattr("merge.planning.check_process.SMALL", 0)
