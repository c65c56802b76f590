"""A small volley of what `python -m tests.api.malformed` sends ten thousand of."""

import asyncio
import json
import os
import sys

POOL = 8
"""Connections to the database that the server may still open as it needs them; one leak a request would be 160."""


async def test_malformed_uploads_are_refused_with_a_code_and_leave_nothing(services):
    environment = os.environ | {"TEST_DATABASE_URL": services.database_url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.api.malformed", "--count", "200", stdout=asyncio.subprocess.PIPE, env=environment
    )
    out, _ = await asyncio.wait_for(process.communicate(), 100)
    result = json.loads(out.decode().splitlines()[-1].removeprefix("RESULT "))
    assert process.returncode == 0, result
    assert result["wrong"] == []
    assert result["descriptors"][1] <= result["descriptors"][0] + POOL
