"""What holds in all tests: how long an example takes depends on the machine's load and is no property of the code."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("capstan", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("capstan")
