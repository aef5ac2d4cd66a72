"""The rules of a policy, as values."""

import pytest
from django import forms
from pydantic import ValidationError

from audit.actions import Action
from audit.catalogue import CATALOGUE
from common.env import Env
from policy import rules
from policy.errors import InvalidPolicy
from policy.forms import RuleField


def test_every_rule_may_stand_in_the_audit_log():
    assert set(CATALOGUE[Action.POLICY_UPDATE].metadata) == {*rules.RULES, "admin_key"}


NO_DESTINATIONS = [
    "api.example.com",  # no port
    "203.0.113.0/24",
    "localhost:80",  # no dot
    "*.example.com:443",
    "api.example.com:0",
    "api.example.com:443-80",
    "api.example.com:70000",
    "api.example.com:443/icmp",
    "api.example.com:443; drop",
    "api.example.com\n:443",
    "1.2.3:443",  # an address for some programs
    "0x7f.1:443",
    "[2001:db8::1]:443",
    "10.0.0.0/33:443",
    "10.0.0.0/255.0.0.0:443",
    "-a.example.com:443",
    f"{'a' * 64}.example.com:443",
    f"{'a.' * 126}example:443",
    "",
    443,
]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_engines", True),
        ("max_engines", -1),
        ("max_engines", "5"),
        ("rate_limit_rpm", 1.5),
        ("rate_limit_rpm", None),
        ("images", []),
        ("images", "demo"),
        ("images", ["a b"]),
        ("images", [1]),
        ("images", ["acme/agent:x/../../other:1"]),
        ("images", ["acme/agent:[12]"]),
        ("images", ["ab36c51b6172"]),
        ("engine_image", ""),
        ("engine_image", "acme/agent:*"),
        ("engine_image", "sha256:ab36c51b6172"),
        ("memory_mb", 0),
        ("memory_mb", 15),
        ("memory_mb", 64.0),
        ("cpus", 0),
        ("cpus", 1e-10),
        ("cpus", float("nan")),
        ("cpus", True),
        ("cpus", "1"),
        ("pids", 2.5),
        ("pids", 7),
        ("runtime", "runsc"),
        ("runtime", ""),
        ("runtime", ["runc"]),
        ("colour", 1),
        ("egress", "all"),
        ("egress", []),
        ("egress", ["api.example.com:443"] * 101),
        *(("egress", [entry]) for entry in NO_DESTINATIONS),
    ],
)
def test_check_names_the_key_it_refuses(key, value):
    with pytest.raises(InvalidPolicy, match=f"policy.{key}"):
        rules.check({key: value})


@pytest.mark.parametrize(
    "egress",
    ["internet", "none", ["api.example.com:443", "203.0.113.0/24:8000-8010/tcp", "192.0.2.1:53/udp", "_x.Example.COM:1-65535"]],
)
def test_check_takes_where_engines_may_connect(egress):
    assert rules.check({"egress": egress}) == {"egress": egress}
    assert rules.choose_egress({"egress": egress}, internet=False) == egress


def test_choose_egress_without_a_rule_is_the_setting():
    assert [rules.choose_egress({}, internet=internet) for internet in (True, False)] == ["internet", "none"]


def test_check_takes_the_least_that_an_engine_may_have():
    least = {"memory_mb": 16, "cpus": 0.01, "pids": 8}
    assert rules.check(least) == least
    assert Env(**{f"engine_{rule}": value for rule, value in least.items()}).engine_cpus == 0.01


@pytest.mark.parametrize("wrong", [{"engine_memory_mb": 15}, {"engine_cpus": 1e-10}, {"engine_pids": 7}])
def test_settings_refuse_less(wrong):
    with pytest.raises(ValidationError, match="greater than or equal"):
        Env(**wrong)


def test_check_takes_the_runtimes_that_the_settings_allow_and_names_them(settings):
    settings.ENV = Env.model_validate({**settings.ENV.model_dump(), "engine_runtimes": "runsc, io.containerd.runc.v2"})
    assert rules.check({"runtime": "io.containerd.runc.v2"}) == {"runtime": "io.containerd.runc.v2"}
    with pytest.raises(InvalidPolicy, match=r"policy\.runtime: .* ORCH_ENGINE_RUNTIMES allows: runsc, io\.containerd\.runc\.v2"):
        rules.check({"runtime": "runc"})


@pytest.mark.parametrize("wrong", ["", " , ", "runc,/usr/bin/runsc", "two words", "-runc"])
def test_settings_refuse_what_names_no_runtime(wrong):
    with pytest.raises(ValidationError, match="ORCH_ENGINE_RUNTIMES"):
        Env(engine_runtimes=wrong)


@pytest.mark.parametrize("policy", [None, [], "x", 1])
def test_check_refuses_what_is_no_object(policy):
    with pytest.raises(InvalidPolicy):
        rules.check(policy)


def test_names_takes_a_name_with_brackets_for_itself():
    assert rules.names("[fd00::1]:5000/agent:1", "[fd00::1]:5000/agent:1")
    assert not rules.names("[fd00::1]:5000/agent:1", "[fd00::1]:5000/agent:2")


def test_names_lets_a_star_before_the_tag_stand_for_a_slash_too():
    assert rules.names("acme/*", "acme/tools/agent:1")
    assert rules.names("acme/*:1.*", "acme/tools/agent:1.4")
    assert rules.names("[fd00::1]:5000/*:1", "[fd00::1]:5000/acme/agent:1")


DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("pattern", "image"),
    [
        ("acme/agent:*", "acme/agent:x/../../other:1"),
        ("acme/agent:*", "acme/agent:x/y"),
        ("acme/agent:*", "acme/agent"),
        ("acme/agent:*", f"acme/agent@{DIGEST}"),
        ("acme/agent:*", "acme/agent:5000/other:1"),
        ("acme/agent", f"acme/agent@{DIGEST}"),
        ("acme/agent", "acme/agent:1"),
        ("acme/agent:1", f"acme/agent:2@{DIGEST}"),
        (f"acme/agent@{DIGEST}", f"acme/agent@{OTHER}"),
        (f"acme/agent@{DIGEST}", f"other@{DIGEST}"),
        (f"acme/agent@{DIGEST}", DIGEST),
        ("*", DIGEST),
        ("*:*", DIGEST),
        ("*", "ab36c51b6172"),
        ("*", "acme /agent"),
        ("acme/agent:?", "acme/agent:1"),
        ("acme/agent:[12]", "acme/agent:1"),
        ("ab36c51b6172", "ab36c51b6172"),
    ],
)
def test_names_refuses_what_the_pattern_does_not_mean(pattern, image):
    assert not rules.names(pattern, image)


@pytest.mark.parametrize(
    ("pattern", "image"),
    [
        ("acme/agent:*", f"acme/agent:1@{DIGEST}"),
        ("acme/agent:1", f"acme/agent:1@{DIGEST}"),
        (f"acme/agent@{DIGEST}", f"acme/agent:1@{DIGEST}"),
        ("acme/*", f"acme/agent@{DIGEST}"),
        ("acme/agent", "acme/agent"),
        ("*", "registry.example.com:5000/acme/agent:1"),
    ],
)
def test_names_takes_an_image_that_the_pattern_means(pattern, image):
    assert rules.names(pattern, image)


@pytest.mark.parametrize("image", ["Not An Image", "ab36c51b6172", "acme/agent:x/../../other:1", "acme/*", ""])
def test_settings_refuse_an_image_outside_the_grammar(image):
    with pytest.raises(ValidationError, match="ORCH_ENGINE_IMAGE must be the name of an image"):
        Env(engine_image=image)


def test_lowered_only_lowers():
    assert rules.lowered({"memory_mb": 64}, "memory_mb", 512) == 64
    assert rules.lowered({"memory_mb": 1024}, "memory_mb", 512) == 512
    assert rules.lowered({}, "memory_mb", 512) == 512


@pytest.mark.parametrize(
    ("typed", "value"),
    [("none", "none"), ("api.example.com:443\n203.0.113.0/24:80, ", ["api.example.com:443", "203.0.113.0/24:80"])],
)
def test_form_takes_a_word_or_a_list_of_destinations(typed, value):
    assert RuleField("egress", rules.RULES["egress"]).clean(typed) == value


def test_form_refuses_what_is_no_destination():
    with pytest.raises(forms.ValidationError, match="internet, none"):
        RuleField("egress", rules.RULES["egress"]).clean("everything")
