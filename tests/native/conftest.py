"""Every test of the host runs over both back ends."""

import os

import pytest

from qcthreads.host import get_host, native_status


@pytest.fixture(params=["native", "portable"])
def host(request, monkeypatch):
    available, reason = native_status()
    if request.param == "native" and not available:
        if os.environ.get("CI") and "QCTHREADS_PURE" not in reason:
            pytest.fail(f"the native extension is missing in CI: {reason}")
        pytest.skip(f"the native extension is not there: {reason}")
    monkeypatch.setenv("QCTHREADS_BACKEND", request.param)
    made = get_host()
    assert made.capabilities.back_end == request.param
    return made
