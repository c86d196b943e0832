from __future__ import annotations

import pytest

from handlers.migrate import handler
from pgcontext import ConfigError
from pgcontext.limits import SCHEMA_REVISION


def test_job_migrates_over_the_unpooled_url(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a function, the job takes the direct URL beside the pooled one, and may run twice."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "migrate")
    monkeypatch.setenv("DATABASE_URL", "postgresql://app:s3cret@ep-a-pooler.eu.neon.tech/app")
    monkeypatch.setenv("DATABASE_URL_UNPOOLED", empty_database_url)
    for _ in range(2):
        assert handler({}, None) == {"revision": SCHEMA_REVISION}


def test_job_refuses_a_transaction_pooler(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pooled URL alone, the job names the variable that is missing, and no password."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://app:s3cret@ep-a-pooler.eu.neon.tech/app")
    monkeypatch.delenv("DATABASE_URL_UNPOOLED", raising=False)
    with pytest.raises(ConfigError, match="DATABASE_URL_UNPOOLED") as refused:
        handler({}, None)
    assert "s3cret" not in str(refused.value)
