"""One node's devices: discover, publish, prepare, watch health.

`Driver` is the whole; `models.parse_fleet` and `simulated.SimulatedNvml` give it machines that do not exist.
"""

from capstan.node.driver import Driver
from capstan.node.errors import NodeError
from capstan.node.inventory import DRIVER
from capstan.node.watch import SliceWatch

__all__ = ["DRIVER", "Driver", "NodeError", "SliceWatch"]
