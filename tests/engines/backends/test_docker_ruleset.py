"""The guard's rules as text, and what the program in the guard's container reads; test_docker_egress tries them on a daemon."""

import re
from ipaddress import ip_address, ip_network

import pytest

from engines.backends.docker import Options, resident, ruleset


def test_program_and_workers_sum_bridges_up_in_the_same_way():
    chains = {"rh-b": "none", "rh-a": ruleset.chain_of(["api.example.com:443"])}
    assert resident.digest(chains) == ruleset.digest(dict(reversed(chains.items()))) != ruleset.digest({})


@pytest.mark.parametrize(
    ("resolv_conf", "servers"),
    [
        ("search example\nnameserver 10.0.0.53\nnameserver 192.0.2.1 \nnameserver 10.0.0.53\n", ["10.0.0.53", "192.0.2.1"]),
        ("nameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver nonsense\n# nameserver 192.0.2.1\nnameserver\n", []),
    ],
)
def test_program_opens_the_name_servers_that_engines_ask_from_their_network(resolv_conf, servers):
    assert resident.name_servers(resolv_conf) == servers


def test_chain_of_a_list_names_a_set_for_each_name():
    chain = ruleset.chain(["API.example.com:443", "api.example.com:53/udp", "203.0.113.7/24:8000-8010"])
    ((taker, name),) = chain["names"].items()
    assert name == "api.example.com"
    assert chain["egress"] == [
        f"ip daddr @{taker} tcp dport 443 goto opened",
        f"ip daddr @{taker} udp dport 53 goto opened",
        "ip daddr 203.0.113.0/24 tcp dport 8000-8010 goto opened",
    ]
    assert chain["answers"][-1] == "ip saddr 203.0.113.0/24 tcp sport 8000-8010 accept"
    assert ruleset.chain("internet") is ruleset.chain("none") is None


def test_denied_ranges_may_overlap_and_exceptions_come_first():
    options = Options(egress_deny="10.1.0.0/16, 44.0.0.0/9", egress_allow="10.0.0.0/8, 10.9.9.9:53/udp")
    text = ruleset.write(options, ["192.31.196.1"])
    order = [
        "ip daddr { 192.31.196.1 } drop",
        "ip daddr 10.0.0.0/8 return",
        "ip daddr 10.9.9.9/32 udp dport 53 return",
        "ip daddr { 0.0.0.0/8, 10.0.0.0/8, 44.0.0.0/9, ",
    ]
    assert sorted(order, key=text.index) == order


PRIVATE = ["10.255.255.254", "172.16.0.1", "172.31.255.254", "192.168.0.1", "100.64.0.1", "100.127.255.254"]
RESERVED = ["0.0.0.1", "127.0.0.1", "192.0.0.1", "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.19.255.254", "255.255.255.255"]
METADATA = ["169.254.169.254", "168.63.129.16", "100.100.100.200"]
INTERNET = ["8.8.8.8", "168.63.129.15", "168.63.129.17", "172.32.0.1", "100.128.0.1", "198.20.0.1", "192.167.255.254"]


def test_ranges_that_are_not_the_internet_are_denied_without_any_setting():
    (listed,) = re.findall(r"ip daddr \{ (0\.0\.0\.0/8[^}]*) \} drop", ruleset.write(Options(), []))
    denied = [ip_network(part) for part in listed.split(", ")]
    asked = [*PRIVATE, *RESERVED, *METADATA, "224.0.0.1", "239.255.255.250", "240.0.0.1", *INTERNET]
    assert [address for address in asked if not any(ip_address(address) in network for network in denied)] == INTERNET
