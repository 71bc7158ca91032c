"""CEL: time per evaluation, per device of a fleet, and per compilation, beside cel-expr-python in the same run.

`python -m bench.cel` prints a table; `run()` gives its rows as (name, unit, value, comparison).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

from tests.cel.hostile import ANSWERED, FAILING, REFUSED

from capstan import cel
from capstan.cel.columnar import Fleet
from capstan.cel.program import compile as compile_cel

Row = tuple[str, str, float, str]
DOMAIN = "gpu.nvidia.com"
FLEET = 10_000

EXPRESSIONS = {
    "E1 driver, type and capacity": "device.driver == 'gpu.nvidia.com'"
    " && device.attributes['gpu.nvidia.com'].type == 'gpu'"
    " && device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('40Gi')) >= 0",
    "E2 lowerAscii().matches()": "device.attributes['gpu.nvidia.com'].productName.lowerAscii().matches('^.*a100.*$')",
    "E3 semver": "device.attributes['gpu.nvidia.com'].driverVersion.isGreaterThan(semver('535.0.0'))",
    "E4 .?absent.orValue": "device.attributes['gpu.nvidia.com'].?absent.orValue('none') == 'none'",
    "E5 cel.bind": "cel.bind(a, device.attributes['gpu.nvidia.com'], a.type == 'gpu' && a.healthy)",
    "E8 list.exists": "['gpu', 'mig'].exists(t, t == device.attributes['gpu.nvidia.com'].type)",
    "E11 in list": "device.attributes['gpu.nvidia.com'].type in ['gpu', 'mig', 'vfio']",
}
# What cel-expr-python can run: its values are plain, so versions and quantities are left out.
COMPARABLE = ("E2 lowerAscii().matches()", "E4 .?absent.orValue", "E5 cel.bind", "E8 list.exists", "E11 in list")


def device(number: int) -> cel.device.DeviceBinding:
    """One of eight kinds of GPU."""
    product = ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA L4")[number % 4]
    attributes = {
        "type": "gpu" if number % 8 < 4 else "mig",
        "productName": product,
        "uuid": f"GPU-{number:08d}",
        "index": number % 8,
        "driverVersion": cel.Semver.parse("550.54.14"),
        "healthy": True,
    }
    return cel.device.bind(DOMAIN, attributes, {"memory": Decimal((40, 80, 80, 24)[number % 4] * 2**30)})


def best_of(call: Callable[[], Any], rounds: int, repeat: int = 7) -> float:
    """Microseconds of processor time per call: the fastest of several rounds, the one that was disturbed least."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        for _ in range(rounds):
            call()
        times.append(time.process_time() - start)
    return min(times) / rounds * 1e6


def peer(expression: str) -> Callable[[], Any] | None:
    """The same evaluation by cel-expr-python, or None where it is not installed."""
    try:
        from cel_expr_python import cel as oracle
        from cel_expr_python.ext import ext_bindings, ext_optional, ext_strings
    except ImportError:
        return None
    extensions = [ext_bindings.ExtBindings(), ext_optional.ExtOptional(), ext_strings.ExtStrings()]
    environment = oracle.NewEnv(variables={"device": oracle.Type.DYN}, extensions=extensions)
    program = environment.compile(expression)
    attributes = {
        name: value
        for name, value in device(0).variables["device"]["attributes"][DOMAIN].items()
        if name != "driverVersion"
    }
    data = {"device": {"driver": DOMAIN, "attributes": {DOMAIN: attributes}}}
    return lambda: program.eval(data=data)


def run() -> list[Row]:
    """One row per expression for a single evaluation, per device of a fleet, and for compiling."""
    rows: list[Row] = []
    fleet = Fleet([device(number) for number in range(FLEET)])
    bound = device(0).variables
    for name, expression in EXPRESSIONS.items():
        selector = cel.device.compile_selector(expression)
        program = selector.program
        single = best_of(partial(program.evaluate, bound), 20_000)
        other = peer(expression) if name in COMPARABLE else None
        comparison = "aim <= 1"
        if other is not None:
            theirs = best_of(other, 2_000, 5)
            comparison += f"; cel-expr-python {theirs:.1f} = {theirs / single:.0f}x"
        rows.append((name, "us/evaluation", single, comparison))
        fleet.select(selector)
        columnar = best_of(partial(fleet.select, selector), 20) / FLEET
        rows.append((f"{name}, fleet of {FLEET}", "us/device", columnar, "aim <= 0.05"))
        compiling = best_of(partial(compile_cel.__wrapped__, expression, program.environment), 100)
        rows.append((f"{name}, compile", "us", compiling, "aim <= 1000"))
    return rows


def hostile() -> Row:
    """The slowest of the texts that the tests call hostile: processor time of one compilation and evaluation."""
    environment = cel.environments.standard()
    worst = (0.0, "")
    for name, text in {**REFUSED, **FAILING, **ANSWERED}.items():
        started = time.process_time()
        try:
            compile_cel.__wrapped__(text, environment).evaluate({})
        except cel.CelError:
            pass
        worst = max(worst, ((time.process_time() - started) * 1e3, name))
    return "slowest hostile text", "ms", worst[0], f"aim <= 50; {worst[1]}"


def main() -> None:
    for name, unit, value, comparison in [*run(), hostile()]:
        print(f"{name:45} {value:10.3f} {unit:15} {comparison}")


if __name__ == "__main__":
    main()
