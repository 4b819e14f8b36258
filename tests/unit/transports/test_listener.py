"""The listeners of `metrics.listen`: which requests they trust, and what they do not serve."""

import pytest

from push1st.config.addresses import Networks
from push1st.config.model import ServerConfig
from push1st.transports.descriptors import Descriptors
from push1st.transports.handlers import Handlers, refuse_upgrade
from push1st.transports.listener import MetricsListener
from tests.support.http import handshake, request, statuses
from tests.support.served import Served
from tests.support.transport import Site

OUTSIDE = ("203.0.113.9", 1234)
PROXY = ("10.0.0.1", 1234)


@pytest.fixture
def served():
    return Served()


async def test_listener_for_clients_passes_no_headers_to_the_api(served):
    for trusting in (True, False):
        await Site(serve=served, trusting=trusting).ask(request("GET", "/x", None, "Authorization: Bearer x"))
        assert (served.last.headers is not None) is trusting


@pytest.fixture
def scraped(served):
    """A worker with an address of `metrics.listen`."""
    site = Site(serve=served, server=ServerConfig(proxies=Networks.parse([PROXY[0]])))
    handlers = Handlers(site.context, served, (), refuse_upgrade)
    site.listener = MetricsListener(site.context, handlers, False, Networks(), 10)
    return site


def get(host: str, *headers: str) -> bytes:
    return "\r\n".join(("GET /metrics HTTP/1.1", f"Host: {host}", *headers, "", "")).encode()


@pytest.mark.parametrize("peer", [("127.0.0.1", 1), OUTSIDE, ("::1", 1, 0, 0), ("2001:db8::1", 1, 0, 0), ""])
@pytest.mark.parametrize("host", ["10.0.0.5:9601", "[::1]:9601", "localhost"])
async def test_address_for_metrics_trusts_callers_of_every_network(scraped, served, peer, host):
    await scraped.ask(get(host), peer)
    assert served.last.distrust == ""


@pytest.mark.parametrize("host", ["push1st", "push1st.monitoring.svc:9601", "push1st-0.push1st.monitoring.svc.cluster.local"])
async def test_address_for_metrics_trusts_callers_that_use_a_private_name(scraped, served, host):
    await scraped.ask(get(host), OUTSIDE)
    assert served.last.distrust == ""


@pytest.mark.parametrize(
    ("peer", "request_"),
    [
        (OUTSIDE, get("evil.example")),
        (("127.0.0.1", 1), get("push1st")),
        (OUTSIDE, get("10.0.0.5", "Origin: http://10.0.0.5")),
        (OUTSIDE, get("10.0.0.5", "X-Forwarded-For: 10.0.0.7")),
        (OUTSIDE, get("10.0.0.5", "Via: 1.1 proxy")),
        (PROXY, get("10.0.0.5", "X-Forwarded-For: 127.0.0.1")),
        (PROXY, get("10.0.0.5", "Via: 1.1 proxy")),
    ],
    ids=["public name", "name of a loopback address", "web page", "unknown proxy", "via", "loopback", "proxy without a client"],
)
async def test_address_for_metrics_does_not_trust_web_pages_and_proxies(scraped, served, peer, request_):
    await scraped.ask(request_, peer)
    assert served.last.distrust


async def test_address_for_metrics_trusts_a_client_that_a_configured_proxy_names(scraped, served):
    await scraped.ask(get("10.0.0.5", "X-Forwarded-For: 203.0.113.9"), PROXY)
    assert served.last.distrust == ""


async def test_address_for_metrics_accepts_no_websockets(scraped):
    transport = await scraped.ask(handshake("/app/app-key"))
    assert statuses(transport.data) == [404]
    assert b"metrics.listen accepts no WebSockets" in transport.data
    assert scraped.metrics.connections.total() == 0


async def test_address_for_metrics_has_no_fallbacks_and_no_event_streams(scraped, served):
    for path in ("/sse/app/app-key/c", "/pusher/app/app-key/0/x/xhr_streaming"):
        await scraped.ask(request("GET", path))
        assert served.last.path == path, "the API of the address gets the request, and rejects it"


async def test_new_connection_of_a_crowded_worker_to_an_address_for_metrics_keeps_its_rules(scraped):
    assert all(type(one) is MetricsListener for one in scraped.listener.crowds.values())


async def test_address_for_metrics_bounds_the_connections_of_one_address(scraped):
    scraped.context.descriptors = Descriptors(lambda: 62, lambda: 30)
    made = [scraped.connect(OUTSIDE, number=40) for _ in range(40)]
    assert sum(connection._listener is scraped.listener for connection, transport in made if not transport.aborted) == 14
    assert sum(transport.aborted for _, transport in made) == 10
    other, transport = scraped.connect(("198.51.100.7", 1), number=45)
    assert other._listener is scraped.listener
    assert not transport.aborted


@pytest.mark.parametrize(("number", "aborted"), [(45, False), (49, False), (50, True), (57, True)])
async def test_address_for_metrics_does_not_use_the_descriptors_that_are_reserved_for_the_api(scraped, number, aborted):
    scraped.context.descriptors = Descriptors(lambda: 62, lambda: 30)
    for _ in range(10):
        scraped.connect(("127.0.0.1", 1), number=40)
    assert scraped.connect(OUTSIDE, number=number)[1].aborted is aborted
