"""The text of the guard's nftables rules.

From an engine to the host (chain `input`): packets of established connections, and questions to the engines' name servers.

From an engine through the host (chain `forward`): nothing to other bridges, with or without engines; no IPv6; nothing to denied
ranges, except for the operator's exceptions; nothing to the control plane's servers, on any machine. What is left is decided by
the rule `egress` of the engine's product. The map `egress` leads from the name of a bridge to the chain of its product, and a
bridge that is not in the map is closed. Every packet is compared, also a packet of an established connection: a connection ends
as soon as its destination is forbidden. The same holds for the packets that come back (map `answers`).

From elsewhere to an engine (chain `to_engines`): answers, and connections to a published port. A connection to the engine's own
address is dropped: Docker before 28 accepts it from every machine with a route, also where the port is published on loopback. A
connection that was sent to a loopback address from another machine is dropped, too.

From engine to engine on one bridge: nothing. Docker (enable_icc=false, where engines are reached by ports) and the rule
`oifname "rh-*" drop` enforce the isolation, too. Table `inet` sees frames within a bridge only where the bridge's switch
`nf_call_iptables` is on: see `resident`.

Clients (containers calling engines by name) are on the engines' bridge. Clients may open connections to engines. All other
connections within the bridge are forbidden. Table `bridge` restricts engines within a bridge, because frames within a bridge
need not pass the `inet` rules:

- The table recognizes engines by the first bytes of their MAC addresses. Engines can neither forge packets nor change their MAC
  addresses, because engines have no capabilities.
- The table keeps no connection state, because some kernels cannot track connections of bridges.
- From an engine to a client only two kinds of packets pass: ARP, required for answers, and all TCP packets except the first of
  a connection. Thus an engine can answer on a client's connection, but cannot open a connection.

Chains of priority -10 run before Docker's chains. A dropped packet stays dropped. An accepted packet must still pass Docker's
chains.
"""

import hashlib
import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import Any

from common import destinations
from common.destinations import Destination
from engines.backends.base import INTERNET, NO_EGRESS, Egress
from engines.backends.docker.containers import digits, mac_prefix
from engines.backends.docker.options import Options

# Ranges that are not the internet, from IANA's registry of special addresses (RFC 6890), and the metadata address of a cloud
# (Azure) that lies outside them.
NOT_THE_INTERNET = (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # between a carrier and its customers; metadata services of some clouds
    "127.0.0.0/8",  # loopback
    "168.63.129.16/32",  # Azure
    "169.254.0.0/16",  # link-local; metadata services of most clouds
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # protocol assignments
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # relays from IPv6, deprecated
    "192.168.0.0/16",  # private
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
)

# A burst of ten seconds' worth: a program opens many connections when it begins, and few afterwards.
BURST_S = 10

MASK = "ff:ff:ff:ff:00:00"  # selects the bytes of a MAC address shared by all engines of a deployment

# `update` keeps an engine's entry for a minute after its last new connection; `add` would give a new burst every minute. The
# set `open_flows` needs no time-out: the kernel removes an entry without connections.
TABLE = """
table inet {table} {{}}
delete table inet {table}
table inet {table} {{
  set name_servers {{ type ipv4_addr; }}
  set askers {{ type ifname; }}
  map egress {{ type ifname : verdict; }}
  map answers {{ type ifname : verdict; }}
  set new_flows {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout 1m; }}
  set open_flows {{ type ipv4_addr; size 65535; flags dynamic; }}
  chain opened {{
    ct state new,related update @new_flows {{ ip saddr limit rate over {rate}/second burst {burst} packets }} drop
    ct state new,related add @open_flows {{ ip saddr ct count over {flows} }} drop
    accept
  }}
  chain denied {{
{denied}
  }}
  chain denied_answers {{
{denied_answers}
  }}
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname != "{bridges}*" accept
    ct direction reply ct state established accept
    ct state related meta l4proto icmp accept
    iifname @askers ip daddr @name_servers meta l4proto {{ tcp, udp }} th dport 53 goto opened
    drop
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname != "{bridges}*" oifname "{bridges}*" goto to_engines
    iifname != "{bridges}*" accept
    ct direction reply ct state established accept
    ct state related meta l4proto icmp accept
    ether saddr & {mask} != {engines} ether daddr & {mask} == {engines} accept
    oifname "rh-*" drop
    oifname "br-*" drop
    oifname "docker*" drop
    meta nfproto ipv6 drop
    iifname @askers ip daddr @name_servers meta l4proto {{ tcp, udp }} th dport 53 goto opened
    jump denied
    iifname vmap @egress
    drop
  }}
  chain to_engines {{
    ct direction original ct status & dnat == 0 drop
    ct direction original ct original ip daddr 127.0.0.0/8 drop
    ct direction original accept
    ct state related meta l4proto icmp accept
    oifname @askers ip saddr @name_servers meta l4proto {{ tcp, udp }} th sport 53 accept
    jump denied_answers
    oifname vmap @answers
    drop
  }}
}}
table bridge {table} {{}}
delete table bridge {table}
table bridge {table} {{
  chain forward {{
    type filter hook forward priority -10; policy accept;
    ether saddr & {mask} != {engines} accept
    ether daddr & {mask} == {engines} drop
    ether type arp accept
    ether type ip tcp flags & (ack | rst) != 0 accept
    drop
  }}
}}
"""


def bridge_prefix(deployment: str) -> str:
    """The prefix of the names of a deployment's bridges; short, as an interface's name has at most 15 characters."""
    return f"rh-{digits(deployment)}"


def table_name(deployment: str) -> str:
    """The name of both tables of a deployment."""
    return f"roundhouse_{digits(deployment)}"


def write(options: Options, servers: Iterable[str]) -> str:
    """Both tables of a deployment, in a form that replaces them in one step. `servers`: the control plane's, by address."""
    return TABLE.format(
        table=table_name(options.deployment),
        bridges=bridge_prefix(options.deployment),
        mask=MASK,
        engines=_engines(options),
        rate=options.flows_per_s,
        burst=options.flows_per_s * BURST_S,
        flows=options.max_flows,
        denied=_lines(_denied(options, sorted(servers))),
        denied_answers=_lines(_denied_answers(options, sorted(servers))),
    )


def _engines(options: Options) -> str:
    """The MAC addresses of the deployment's engines, without the last two bytes."""
    return f"{mac_prefix(options.deployment)}:00:00"


def _lines(rules: Iterable[str]) -> str:
    return "\n".join(f"    {rule}" for rule in rules)


def _denied(options: Options, servers: list[str]) -> list[str]:
    """Rules for packets of engines; without effect on a packet that may pass.

    Where engines are reached by name, a client on their network may be a worker, which needs the control plane's servers.
    """
    ours = f"ip daddr {{ {', '.join(servers)} }}"
    is_client = f"ether saddr & {MASK} != {_engines(options)}"
    rules = [f"{is_client} {ours} accept"] if servers and options.reach == "container" else []
    rules += [f"{ours} drop"] if servers else []
    return [*rules, *_exceptions(options, "d"), f"ip daddr {{ {_not_allowed(options)} }} drop"]


def _denied_answers(options: Options, servers: list[str]) -> list[str]:
    """Rules for packets on their way back to engines."""
    verdict = "accept" if options.reach == "container" else "drop"  # answers to a client: no engine's question gets there
    rules = [f"ip saddr {{ {', '.join(servers)} }} {verdict}"] if servers else []
    return [*rules, *_exceptions(options, "s"), f"ip saddr {{ {_not_allowed(options)} }} drop"]


def _exceptions(options: Options, end: str) -> list[str]:
    allowed = map(destinations.parse, destinations.split(options.egress_allow))
    return [f"{_match(destination, end)} return" for destination in allowed]


def _not_allowed(options: Options) -> str:
    """The denied ranges without overlaps, which nftables does not accept in one set."""
    ranges = [*NOT_THE_INTERNET, *destinations.split(options.egress_deny)]
    return ", ".join(map(str, ipaddress.collapse_addresses(ipaddress.IPv4Network(each, strict=False) for each in ranges)))


def _match(destination: Destination, end: str, names: Mapping[str, str] | None = None) -> str:
    """The match of packets to a destination (`end` is "d") or from it ("s"). `names`: the set of each name's addresses."""
    whose = f"@{names[destination.host]}" if names and destination.is_name else destination.host
    if not destination.first:
        return f"ip {end}addr {whose}"
    ports = f"{destination.first}-{destination.last}" if destination.last > destination.first else str(destination.first)
    return f"ip {end}addr {whose} {destination.protocol} {end}port {ports}"


# -- the rule `egress` of a product ------------------------------------------------------------------------------------


def chain_of(egress: Egress) -> str:
    """Names what a bridge's engines may reach: `internet`, `none`, or a hash of the list."""
    if isinstance(egress, str):
        return egress
    return hashlib.sha256("\n".join(egress).encode()).hexdigest()[:16]


def chain(egress: Egress) -> dict[str, Any] | None:
    """The chain of a list as the guard's program takes it; None for INTERNET and NO_EGRESS, which need no chain.

    `egress` and `answers` are rules for packets of engines and for packets coming back. `names` are the names to look up, by
    the set that takes their addresses. A set belongs to a name, and not to a product: only chains of lists with the name refer
    to it.
    """
    if isinstance(egress, str):
        assert egress in (INTERNET, NO_EGRESS)
        return None
    wanted = [destinations.parse(text) for text in egress]
    names = {each.host: f"n_{hashlib.sha256(each.host.encode()).hexdigest()[:16]}" for each in wanted if each.is_name}
    return {
        "egress": [f"{_match(each, 'd', names)} goto opened" for each in wanted],
        "answers": [f"{_match(each, 's', names)} accept" for each in wanted],
        "names": {taker: name for name, taker in names.items()},
    }


def digest(chains: Mapping[str, str]) -> str:
    """Sums up which chain each bridge has; the guard's program computes the same."""
    return hashlib.sha256(json.dumps(sorted(chains.items())).encode()).hexdigest()[:16]
