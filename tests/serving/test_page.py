"""The page is one file that loads and runs nothing else."""

from __future__ import annotations

import re

from serving.page.page import page
from tests.serving.live import Live


def test_the_page_is_whole_and_its_policy_lets_nothing_else_run(server: Live) -> None:
    response = server.http.get("/")
    text, policy = page()
    assert response.text == text and response.headers["content-security-policy"] == policy
    assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy and policy.count("sha256-") == 2
    assert not re.search(
        r"https?://|//cdn|@import|url\(|<link rel=\"stylesheet|<iframe|innerHTML|style=\"| on\w+=", text
    )
    assert text.count("<script>") == text.count("<style>") == 1
    for label in re.findall(r'<label for="(\w+)"', text):
        assert f'id="{label}"' in text
