"""The server on a socket: TLS, tokens, limits, streams that end with their reader, protobuf bodies."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from capstan.api.resources import CONFIG_MAPS, PODS
from capstan.kube import Client, NotFound, Token, from_kubeconfig
from capstan.kube.http import HttpTransport
from capstan.local import DataDirectoryInUse, Server, asgi, serving
from capstan.local.credentials import write_kubeconfig
from capstan.local.protobuf import Undecodable, decode

MAPS = "/api/v1/namespaces/default/configmaps"


def serve(tmp_path: Path, work: Callable[[Server, str], Awaitable[None]], *, tls: bool = False) -> None:
    async def run() -> None:
        server = Server(tmp_path)
        await server.start()
        try:
            async with serving(server, tls=tls) as url:
                await asyncio.wait_for(work(server, url), 30)
        finally:
            await server.stop()

    asyncio.run(run())


def headers(server: Server, **more: str) -> dict[str, str]:
    assert server.credentials is not None
    return {"Authorization": f"Bearer {server.credentials.admin_token}", **more}


def test_connections_that_ask_for_nothing_are_closed_and_too_many_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "_KEEP_ALIVE_SECONDS", 2)
    monkeypatch.setattr(asgi, "_MOST_CONNECTIONS", 2)

    async def work(server: Server, url: str) -> None:
        host, port = "127.0.0.1", int(url.rpartition(":")[2])
        silent, other, third = [await asyncio.open_connection(host, port) for _ in range(3)]
        assert await third[0].read() == b""
        assert not silent[0].at_eof() and not other[0].at_eof()
        assert await silent[0].read() == await other[0].read() == b""
        async with aiohttp.ClientSession(headers=headers(server)) as session, session.get(f"{url}/api") as answer:
            assert answer.status == 200
        for _, writer in (silent, other, third):
            writer.close()

    serve(tmp_path, work)


def test_a_client_with_the_kubeconfig_over_tls_and_after_a_restart(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"

    async def first(server: Server, url: str) -> None:
        assert server.credentials is not None
        assert url.startswith("https://127.0.0.1:")
        write_kubeconfig(kubeconfig, url, server.credentials)
        transport = from_kubeconfig(kubeconfig)
        client = Client(transport)
        await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}, "data": {"x": "1"}}, "default")
        await transport.close()

    async def second(server: Server, url: str) -> None:
        assert server.credentials is not None
        write_kubeconfig(kubeconfig, url, server.credentials)
        transport = from_kubeconfig(kubeconfig)
        client = Client(transport)
        assert (await client.get(CONFIG_MAPS, "a", "default")).data == {"x": "1"}
        await transport.close()

    serve(tmp_path / "data", first, tls=True)
    serve(tmp_path / "data", second, tls=True)


def test_the_certificate_is_checked(tmp_path: Path) -> None:
    async def work(server: Server, url: str) -> None:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get(f"{url}/version")
        assert server.credentials is not None
        trusted = ssl.create_default_context(cafile=str(server.credentials.ca))
        async with aiohttp.ClientSession() as session, session.get(f"{url}/version", ssl=trusted) as answer:
            assert (await answer.json())["major"] == "1"

    serve(tmp_path, work, tls=True)


def test_a_second_server_cannot_open_the_directory(tmp_path: Path) -> None:
    async def work(server: Server, url: str) -> None:
        with pytest.raises(DataDirectoryInUse):
            await Server(tmp_path).start()

    serve(tmp_path, work)


def test_tokens_decide_who_it_is(tmp_path: Path) -> None:
    async def work(server: Server, url: str) -> None:
        async with aiohttp.ClientSession() as session:
            async with session.get(url + MAPS) as answer:
                assert answer.status == 401
            async with session.get(url + MAPS, headers={"Authorization": "Bearer wrong"}) as answer:
                assert answer.status == 401
                assert (await answer.json())["reason"] == "Unauthorized"
            async with session.get(f"{url}/healthz", headers={"Authorization": "Bearer wrong"}) as answer:
                assert answer.status == 401
            async with session.get(f"{url}/healthz") as answer:
                assert (answer.status, await answer.text()) == (200, "ok")
            async with session.get(url + MAPS, headers=headers(server)) as answer:
                assert answer.status == 200

    serve(tmp_path, work)


def test_a_body_above_the_limit_is_refused_in_an_answer_that_arrives(tmp_path: Path) -> None:
    async def work(server: Server, url: str) -> None:
        async with aiohttp.ClientSession() as session:
            body = b'{"metadata":{"name":"a"},"data":{"x":"' + b"y" * (4 << 20) + b'"}}'
            async with session.post(url + MAPS, data=body, headers=headers(server)) as answer:
                assert answer.status == 413
                assert (await answer.json())["reason"] == "RequestEntityTooLarge"
            async with session.get(f"{url}{MAPS}/a", headers=headers(server)) as answer:
                assert answer.status == 404

    serve(tmp_path, work)


def test_warnings_are_headers(tmp_path: Path) -> None:
    async def work(server: Server, url: str) -> None:
        body = {"metadata": {"name": "a"}, "dta": {}, "größe": 1}
        async with (
            aiohttp.ClientSession() as session,
            session.post(url + MAPS, json=body, headers=headers(server)) as answer,
        ):
            assert answer.status == 201
            assert answer.headers.getall("Warning")[0] == '299 - "unknown field \\"dta\\""'

    serve(tmp_path, work)


def test_a_watch_ends_with_its_reader(tmp_path: Path) -> None:
    async def work(server: Server, url: str) -> None:
        transport = HttpTransport(url, token=Token(headers(server)["Authorization"].removeprefix("Bearer ")))
        client = Client(transport)
        served = server.registry.find("", "v1", "configmaps")
        assert served is not None
        async with transport.stream(MAPS, query={"watch": "true"}) as lines:
            await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, "default")
            assert b'"type":"ADDED"' in await anext(lines)
            assert len(server.reads.hub(served).watchers) == 1
        for _ in range(100):
            if not server.reads.hub(served).watchers:
                break
            await asyncio.sleep(0.02)
        assert server.reads.hub(served).watchers == []
        await transport.close()

    serve(tmp_path, work)


def test_stopping_ends_open_watches_cleanly(tmp_path: Path) -> None:
    ended: list[bool] = []

    async def follow(url: str, token: str) -> None:
        transport = HttpTransport(url, token=Token(token))
        async with transport.stream(MAPS, query={"watch": "true"}) as lines:
            async for _ in lines:
                pass
        ended.append(True)
        await transport.close()

    async def run() -> None:
        server = Server(tmp_path)
        await server.start()
        assert server.credentials is not None
        served = server.registry.find("", "v1", "configmaps")
        assert served is not None
        async with serving(server, tls=False) as url:
            follower = asyncio.create_task(follow(url, server.credentials.admin_token))
            while not server.reads.hub(served).watchers:
                await asyncio.sleep(0.01)
        await asyncio.wait_for(follower, 5)
        await server.stop()

    asyncio.run(run())
    assert ended == [True]


def test_the_in_process_transport_is_the_same_server(tmp_path: Path) -> None:
    async def work(server: Server, url: str) -> None:
        client = Client(server.transport())
        watched = []

        async def follow() -> None:
            async for event in client.watch(PODS, "default", resource_version="1"):
                watched.append((event.type, event.object.metadata.name))
                if len(watched) == 2:
                    return

        task = asyncio.create_task(follow())
        await client.create(
            PODS, {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}, "default"
        )
        await client.delete(PODS, "p", "default")
        await asyncio.wait_for(task, 5)
        assert watched == [("ADDED", "p"), ("DELETED", "p")]
        with pytest.raises(NotFound, match='pods "p" not found'):
            await client.get(PODS, "p", "default")

    serve(tmp_path, work)


# protobuf


def field(number: int, content: bytes | int) -> bytes:
    """One field of a protobuf message."""

    def varint(value: int) -> bytes:
        out = b""
        while value > 0x7F:
            out += bytes([value & 0x7F | 0x80])
            value >>= 7
        return out + bytes([value])

    if isinstance(content, int):
        return varint(number << 3) + varint(content & (1 << 64) - 1)
    return varint(number << 3 | 2) + varint(len(content)) + content


def envelope(api_version: str, kind: str, raw: bytes) -> bytes:
    return b"k8s\x00" + field(1, field(1, api_version.encode()) + field(2, kind.encode())) + field(2, raw)


def test_protobuf_bodies_of_typed_commands() -> None:
    metadata = field(1, b"a") + field(2, b"") + field(7, 0) + field(8, b"") + field(11, field(1, b"k") + field(2, b"v"))
    body = envelope(
        "v1",
        "ConfigMap",
        field(1, metadata) + field(2, field(1, b"x") + field(2, b"1")) + field(3, field(1, b"b") + field(2, b"\x00")),
    )
    assert decode(body) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "a", "labels": {"k": "v"}},
        "data": {"x": "1"},
        "binaryData": {"b": "AA=="},
    }


def test_protobuf_knows_the_types_that_are_not_messages_in_json() -> None:
    limits = field(1, field(1, b"cpu") + field(2, field(1, b"100m")))
    port = field(1, field(1, b"80")) + field(3, 80)
    probe = field(1, field(2, field(2, field(1, 1) + field(3, b"web")))) + field(4, 0) + field(6, -1)
    container = field(1, b"c") + field(8, limits) + field(10, probe) + field(6, port)
    pod = field(
        2, field(2, container) + field(4, 0) + field(1, field(1, b"v") + field(2, field(2, field(2, field(1, b"1Gi")))))
    )
    spec = decode(envelope("v1", "Pod", pod))["spec"]
    assert spec["containers"][0]["resources"] == {"limits": {"cpu": "100m"}}
    assert spec["containers"][0]["livenessProbe"] == {"httpGet": {"port": "web"}, "failureThreshold": -1}
    assert spec["volumes"] == [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}]
    assert spec["terminationGracePeriodSeconds"] == 0


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"k8s\x00\xff",
        b"k8s\x00" + field(1, field(1, b"v1") + field(2, b"Unicorn")),
        envelope("v1", "ConfigMap", b"\x0a\xff\x01"),
        envelope("v1", "ConfigMap", field(1, field(1, b"\xff"))),
        envelope("v1", "ConfigMap", b"\x0b"),
        envelope("v1", "ConfigMap", b"\x80" * 20),
        envelope("v1", "ConfigMap", field(1, 5)),
        envelope("v1", "ConfigMap", field(2, 5)),
        envelope("v1", "Pod", field(1, field(17, field(7, field(1, b"{"))))),
    ],
)
def test_damaged_protobuf_is_a_client_error(api: Any, body: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(body)
    answer = api.call("POST", MAPS, body, headers={"content-type": "application/vnd.kubernetes.protobuf"})
    assert answer.status[:2] == (400, "BadRequest")
