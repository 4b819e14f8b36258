"""Parses the URL of a broker. The broker is a single server, a master that Sentinel monitors, or a cluster.

- redis://user:password@host:6379/0?prefix=push1st: a single server; valkey:// is the same; rediss:// and valkeys:// use TLS
- unix:///run/valkey.sock?db=0&prefix=push1st: a single server on a Unix socket
- redis+sentinel://host:26379,host:26379/master/0: a master; rediss+sentinel:// uses TLS to the servers and the sentinels
- redis+cluster://host:6379,host:6379: a cluster with sharded pub/sub, which needs Redis 7 or newer, or Valkey
"""

import re
from typing import Literal
from urllib.parse import parse_qsl, unquote

import msgspec

_URL = re.compile(
    r"(?P<kind>redis|rediss|valkey|valkeys)(?:\+(?P<how>sentinel|cluster))?://"
    r"(?:(?P<user>[^@/?#:]*)(?::(?P<password>[^@/?#]*))?@)?"
    r"(?P<hosts>[^/?#]+)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?\Z"
)
_HOST = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^:@\[\]]+))(?::(?P<port>[0-9]{1,5}))?\Z")
_UNIX = re.compile(r"unix://(?:(?P<user>[^@/?#:]*)(?::(?P<password>[^@/?#]*))?@)?(?P<path>/[^?#]+)(?:\?(?P<query>[^#]*))?\Z")
_BEGINNING = re.compile(r"(?:unix|(?:redis|valkey)s?(?:\+(?:sentinel|cluster))?)://")
_NO_SLASHES = re.compile(r"(?:unix|(?:redis|valkey)s?(?:\+(?:sentinel|cluster))?):")
_PLAIN = re.compile(r"[\w.-]+(?::[0-9]+)?(?:/[0-9]*)?\Z")
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")
ALLOWED = "redis://HOST:6379/0, unix:///PATH, redis+sentinel://HOST:26379/MASTER or redis+cluster://HOST:6379"

_UNESCAPED = "a password, or another part, that contains one of @ : / ? #, which must be written %40 %3A %2F %3F %23"


class Address(msgspec.Struct, frozen=True):
    """The address of a broker.

    hosts: host and port of the server, of each sentinel, or of some servers of the cluster.
    path: the path of the server's Unix socket; "" for TCP.
    master: the name of the master in the configuration of the sentinels.
    prefix: the text at the beginning of all keys that Push1st stores in the broker.
    """

    how: Literal["server", "sentinel", "cluster"]
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    tls: bool = False
    user: str = ""
    password: str = ""
    database: int = 0
    master: str = ""
    prefix: str = "push1st"

    def __repr__(self) -> str:
        return f"Address({self})"

    def __str__(self) -> str:
        """Returns the address without user, password and options."""
        where = self.path or ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{self.how} {where}"

    @property
    def all(self) -> str:
        """Describes all parts of the address, but does not reveal the password."""
        parts = [str(self)]
        parts += ["TLS"] if self.tls else []
        parts += [f"master {self.master}"] if self.master else []
        parts += [f"user {self.user}"] if self.user else []
        parts += ["with a password" if self.password else "without a password"]
        parts += [f"database {self.database}"] if self.how != "cluster" else []
        return ", ".join([*parts, f"prefix {self.prefix}"])


def parse(url: str) -> Address:
    """Parses a URL. Raises a ValueError that describes the mistake. The error contains no part of the URL, to hide passwords."""
    match = _URL.match(url) or _UNIX.match(url)
    if match is None:
        raise ValueError(_problem(url))
    found = match.groupdict()
    query = dict(parse_qsl(found["query"] or "", keep_blank_values=True))
    prefix = query.pop("prefix", "push1st")
    database = query.pop("db", "")
    if query:
        raise ValueError("an option other than prefix= and db= after the ?")
    if not _PREFIX.match(prefix):
        raise ValueError("a prefix that is not 1 to 64 letters, digits and _ . : -")
    user, password = unquote(found["user"] or ""), unquote(found["password"] or "")
    if "hosts" not in found:
        return Address(
            "server", path=unquote(found["path"]), user=user, password=password, database=_number(database), prefix=prefix
        )
    if "@" in (found["path"] or ""):
        raise ValueError(_UNESCAPED)
    how = found["how"] or "server"
    parts = [unquote(part) for part in (found["path"] or "").strip("/").split("/") if part]
    master = ""
    if how == "sentinel":
        if not parts:
            raise ValueError("no name of a master after the sentinels")
        master = parts.pop(0)
    if parts and how == "cluster":
        raise ValueError("a database, but a cluster has no databases")
    if len(parts) > 1:
        raise ValueError("more than one database")
    default = 26379 if how == "sentinel" else 6379
    hosts = tuple(_host(one, default) for one in found["hosts"].split(","))
    if how == "server" and len(hosts) > 1:
        raise ValueError("more than one host, without +sentinel or +cluster")
    tls = found["kind"].endswith("s") and found["kind"] != "redis"
    number = _number(parts[0] if parts else database)
    return Address(how, hosts, "", tls, user, password, number, master, prefix)  # type: ignore[arg-type]  # `how` matches


def _problem(url: str) -> str:
    """Returns why a text is not a valid broker URL."""
    beginning = _BEGINNING.match(url)
    if beginning is None:
        if _NO_SLASHES.match(url):
            return "a URL without // after its first colon"
        return "a host without redis:// before it" if _PLAIN.match(url) else "a text with another beginning"
    rest = url[beginning.end() :]
    if "#" in rest:
        return _UNESCAPED
    if beginning[0] == "unix://":
        return "no absolute path after unix:// (with it there are three slashes)"
    return "no host"


def _number(text: str) -> int:
    if not text:
        return 0
    if not text.isdecimal():
        raise ValueError("a database that is not a number")
    return int(text)


def _host(text: str, default: int) -> tuple[str, int]:
    match = _HOST.match(text)
    if match is None:
        raise ValueError(_UNESCAPED if "@" in text else "a host or port that is not valid")
    if int(match["port"] or default) > 65535:
        raise ValueError("a port above 65535")
    return match["six"] or match["name"], int(match["port"] or default)
