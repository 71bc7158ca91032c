"""What holds in all tests: how long an example takes depends on the machine's load and is no property of the code.

`make test` draws the same examples every time, so that it fails only for what was changed; `make properties` draws new
ones.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "capstan",
    deadline=None,
    derandomize="PROPERTY_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("capstan")
