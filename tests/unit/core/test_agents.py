"""The table of the programs of clients."""

from push1st.core.agents import MAX_AGENTS, MAX_LENGTH, OTHER, ClientAgents
from push1st.messages import ClientRequest


def request(agent: str | None, origin: str | None = None) -> ClientRequest:
    return ClientRequest("", origin, user_agent=agent)


def test_clients_with_equal_headers_share_one_entry() -> None:
    agents = ClientAgents()
    one = agents.of(request("a/1", "https://x"))
    assert agents.of(request("a/1", "https://x")) is one
    assert agents.of(request("a/1")) is not one
    assert (one.user_agent, one.origin) == ("a/1", "https://x")
    nothing = agents.of(request(None))
    assert (nothing.user_agent, nothing.origin) == ("", "")


def test_entries_are_bounded_and_end_with_their_clients() -> None:
    agents = ClientAgents()
    held = [agents.of(request(f"a/{number}")) for number in range(MAX_AGENTS)]
    assert agents.of(request("one more")) is OTHER
    assert agents.of(request("a/7")) is held[7]
    del held[0]
    assert agents.of(request("one more")).user_agent == "one more"


def test_long_headers_are_cut() -> None:
    assert len(ClientAgents().of(request("x" * 1000)).user_agent) == MAX_LENGTH
