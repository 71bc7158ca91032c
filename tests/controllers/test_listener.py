"""A component's pages on its own socket: the cluster says who may read them."""

import aiohttp
import pytest

from capstan.api import resources
from capstan.controllers.listener import Listener

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


async def test_an_address_beyond_this_machine_needs_a_certificate(house):
    with pytest.raises(ValueError, match="certificate"):
        Listener(house.client, {}, host="0.0.0.0")
