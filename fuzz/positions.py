"""Fuzzes the requests of clients that name channels in the path: any path and query is a request, or is rejected with 400."""

from random import Random

from fuzz.runner import among, main
from push1st.errors import Refused
from push1st.positions import MAX_POSITION_BYTES, parse_list, write_list
from push1st.transports.path_request import MAX_REWIND, MAX_REWIND_SECONDS, parse

SEEDS = [
    b"key/a/b?since=k3F9aQx2bT:1042,-",
    b"key/a/a/%D0%B6%2Fx/?since=k3F9aQx2bT%3A0%2Ca:1,b:2&rewind=100",
    b"key/c?rewind=30s&positions=1",
    b"key/c?token=a.b+c&session=p&since=a:" + b"9" * 30,
    b"/c?since=" + b"," * 2000,
]


def run(data: bytes, _random: Random) -> None:
    path, _, query = data.decode("latin-1").partition("?")
    try:
        request = parse(path, query)
        since = request.query.get("since", "")
        commands = request.subscriptions(dict.fromkeys(request.channels), since)
    except Refused as refused:
        among(refused.code, (400,))
        return
    assert [one.channel for one in commands] == list(dict.fromkeys(request.channels))
    assert "" not in request.channels
    positions = parse_list(since, len(request.channels))
    assert len(positions) == len(request.channels)
    assert parse_list(write_list(positions), len(positions)) == positions
    for command in commands:
        assert command.since is None or len(str(command.since)) <= MAX_POSITION_BYTES
        assert command.since == positions[request.channels.index(command.channel)]
        assert 0 <= command.rewind <= MAX_REWIND
        assert 0 <= command.rewind_seconds <= MAX_REWIND_SECONDS
        assert not (command.rewind and command.rewind_seconds)


if __name__ == "__main__":
    main(run, SEEDS, __doc__)
