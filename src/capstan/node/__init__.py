"""One node's devices: discover, publish, prepare, watch health.

`Driver` is the whole; `models.parse_fleet` and `simulated.SimulatedNvml` give it machines that do not exist.
"""

from capstan.node.driver import Driver, SliceWatch
from capstan.node.errors import NodeError
from capstan.node.inventory import DRIVER

__all__ = ["DRIVER", "Driver", "NodeError", "SliceWatch"]
