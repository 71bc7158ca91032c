"""Fields and blueprints: the cost of ownership per write, of compiling, and how long drift lasts.

`python -m bench.blueprints`. Ownership is compared with decoding the same object from JSON.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from bench.measure import Figure, report
from capstan import blueprints, fields, kube, local
from capstan.api import crds, resources
from capstan.controllers.blueprint_agent import BlueprintAgent
from capstan.local.types import builtin_types

OBJECTS = 200
EDITS = 30
FACTS = {"kubernetes": {"version": "v1.36.0"}, "gpu": {"count": 8, "mig": True}}


def pod() -> dict[str, Any]:
    container = {
        "name": "main",
        "image": "train:1",
        "imagePullPolicy": "Always",
        "command": ["python"],
        "args": ["train.py"],
        "env": [{"name": f"VARIABLE_{number}", "value": "x"} for number in range(3)],
        "resources": {"limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"}, "requests": {"cpu": "8"}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "ports": [{"containerPort": 8080}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "train-0",
            "namespace": "default",
            "uid": "u",
            "labels": {"app": "train", "kai.scheduler/queue": "research"},
            "annotations": {"pod-group-name": "train"},
        },
        "spec": {
            "schedulerName": "kai-scheduler",
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 30,
            "serviceAccountName": "default",
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "containers": [container],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    }


def microseconds(call: Callable[[], object], calls: int = 2000, runs: int = 5) -> float:
    def once() -> float:
        started = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - started) / calls * 1e6

    return statistics.median(once() for _ in range(runs))


def ownership() -> list[Figure]:
    schema = next(kind for kind in builtin_types() if kind.plural == "pods").merge_schema
    body = pod()
    track = partial(fields.track_update, schema=schema, now="2026-01-01T00:00:00Z", api_version="v1")
    live = track(None, body, "kubectl")
    running = {**live, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    apply = partial(fields.apply, schema=schema, force=True, now="2026-01-01T00:00:00Z", api_version="v1")
    applied = apply(live, body, "agent")
    encoded = msgspec.json.encode(live)
    decode = microseconds(lambda: msgspec.json.decode(encoded))
    return [
        Figure(name, value, "µs", goal, f"{value / decode:.1f} × decoding it")
        for name, goal, value in (
            ("own a created pod", "50", microseconds(lambda: track(None, body, "kubectl"))),
            ("own its status", "", microseconds(lambda: track(live, running, "kubelet", subresource="status"))),
            ("a write without a change", "", microseconds(lambda: track(live, live, "kubectl"))),
            ("apply without a change", "", microseconds(lambda: apply(applied, body, "agent"), calls=500)),
        )
    ]


def library() -> blueprints.Library:
    maps = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"map-{number}", "namespace": "default"},
            "data": {f"key-{key}": "value" for key in range(10)},
        }
        for number in range(OBJECTS)
    ]
    document = {
        "apiVersion": "platform.capstan.dev/v1alpha1",
        "kind": "Blueprint",
        "metadata": {"name": "bench"},
        "spec": {"version": "1.0.0", "addons": [{"name": "maps", "manifests": maps}]},
    }
    return blueprints.Library([blueprints.Source("bench.yaml", document)])


async def seen(look: Callable[[], Awaitable[bool]]) -> None:
    while True:
        if await look():
            return
        await asyncio.sleep(0.0005)


async def agent() -> list[Figure]:
    """Apply and repair through a real server in this process."""
    server = local.Server()
    await server.start()
    client = kube.Client(server.transport(), "kubectl-edit")
    resource = await kube.Discovery(client).resource("apiextensions.k8s.io/v1", "CustomResourceDefinition")
    for definition in crds.load():
        await client.apply(resource, definition, force=True)
    await client.create(resources.BLUEPRINT_VERSIONS, blueprints.published(library(), "bench"))
    reference = {"name": "bench", "version": "1.0.0"}
    await client.create(resources.CLUSTERS, {"metadata": {"name": "c"}, "spec": {"blueprint": reference}})
    started = time.perf_counter()
    task = asyncio.create_task(BlueprintAgent(client, "c").run())

    async def is_applied() -> bool:
        return bool((await client.get(resources.CLUSTERS, "c")).status.digest)

    async def is_repaired(name: str) -> bool:
        return (await client.get(resources.CONFIG_MAPS, name, "default")).data["key-1"] == "value"

    await seen(is_applied)
    applied = time.perf_counter() - started
    repairs = []
    for number in range(EDITS):
        name = f"map-{number}"
        started = time.perf_counter()
        await client.patch(resources.CONFIG_MAPS, name, "default", patch={"data": {"key-1": "edited"}})
        await seen(partial(is_repaired, name))
        repairs.append(time.perf_counter() - started)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await server.stop()
    return [
        Figure(f"apply {OBJECTS} objects", applied * 1e3, "ms"),
        Figure("edit to repaired, median", statistics.median(repairs) * 1e3, "ms", "1,000"),
        Figure("edit to repaired, slowest", max(repairs) * 1e3, "ms", "2,000"),
    ]


def main() -> None:
    layers = library().layers("bench")
    compiling = microseconds(lambda: blueprints.compile(layers, FACTS), calls=20) / 1e3
    figures = [*ownership(), Figure(f"compile {OBJECTS} manifests", compiling, "ms"), *asyncio.run(agent())]
    report("Fields and blueprints", figures)


if __name__ == "__main__":
    main()
