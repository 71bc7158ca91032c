"""A component's pages on its own socket: the cluster says who may read them."""

import ssl

import aiohttp
import pytest

from capstan.api import resources
from capstan.controllers.listener import Listener
from capstan.local import credentials

pytestmark = pytest.mark.anyio
ACCOUNTS = resources.unstructured("", "v1", "serviceaccounts", "ServiceAccount", namespaced=True)


async def page(accept):
    return b"up 1\n", "text/plain; version=0.0.4"


async def token_of(house, name):
    await house.client.create(ACCOUNTS, {"metadata": {"name": name, "namespace": "default"}})
    answer = await house.client.post(ACCOUNTS, name, "default", "token", {"spec": {}})
    return answer["status"]["token"]


@pytest.fixture
async def base(house):
    listener = Listener(await house.grant("listener", Listener.RULES), {"/metrics": page}, port=0)
    house.start(listener)
    await listener.listening.wait()
    return f"http://127.0.0.1:{listener.port}"


async def get(url, token="", method="GET"):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as answer:
        return answer.status, await answer.text(), answer.headers["Content-Type"]


async def test_pages_are_for_those_whom_the_cluster_lets_in(house, base):
    token = await token_of(house, "reader")
    assert (await get(f"{base}/metrics"))[0] == 401
    assert (await get(f"{base}/metrics", "made-up"))[0] == 401
    assert (await get(f"{base}/snapshot", token))[0] == 403
    role = {"metadata": {"name": "reads"}, "rules": [{"nonResourceURLs": ["/metrics", "/other"], "verbs": ["get"]}]}
    await house.client.create(resources.CLUSTER_ROLES, role)
    await house.client.create(
        resources.CLUSTER_ROLE_BINDINGS,
        {
            "metadata": {"name": "reads"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reads"},
            "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "default"}],
        },
    )
    assert await get(f"{base}/metrics", token) == (200, "up 1\n", "text/plain; version=0.0.4")
    assert (await get(f"{base}/metrics", token, "POST"))[0] == 405
    assert (await get(f"{base}/other", token))[0] == 404
    assert (await get(f"{base}/snapshot", token))[0] == 403
    assert (await get(f"{base}/healthz"))[:2] == (200, "ok")


async def test_a_certificate_that_is_replaced_is_served_to_new_connections(house, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("capstan.controllers.listener.RENEW_SECONDS", 0.01)
    first, second = (credentials.ensure(tmp_path / name) for name in ("first", "second"))
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def put(made):
        certificate.write_bytes(made.certificate.read_bytes())
        key.write_bytes(made.key.read_bytes())

    put(first)
    listener = Listener(house.client, {}, host="127.0.0.1", port=0, certificate=certificate, key=key)
    house.start(listener)
    await listener.listening.wait()

    async def answers(made):
        trusted = ssl.create_default_context(cafile=made.ca)
        try:
            url = f"https://127.0.0.1:{listener.port}/healthz"
            async with aiohttp.ClientSession() as session, session.get(url, ssl=trusted) as answer:
                return answer.status == 200
        except aiohttp.ClientSSLError:
            return False

    assert await answers(first) and not await answers(second)
    key.write_text("half written")

    async def complained():
        return "is not renewed" in caplog.text

    await house.until(complained, "the log says that the files do not go together")
    assert await answers(first)
    put(second)
    await house.until(lambda: answers(second), "the new certificate is served")
    assert not await answers(first)


async def test_an_address_beyond_this_machine_needs_a_certificate(house):
    with pytest.raises(ValueError, match="certificate"):
        Listener(house.client, {}, host="0.0.0.0")
