"""References to images: the grammar, what Docker could take for an id, and the names that an image must have."""

import pytest

from common.image_references import Reference, has_names, parse, parse_pattern

HEX = "ab36c51b6172" + "0" * 52
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("demo", ("demo", "", "")),
        ("demo:1.4", ("demo", "1.4", "")),
        ("acme/agent:x", ("acme/agent", "x", "")),
        ("acme/sub/agent__a.b-c---d:V_1", ("acme/sub/agent__a.b-c---d", "V_1", "")),
        ("registry.example.com/acme/agent", ("registry.example.com/acme/agent", "", "")),
        ("Registry.Example.com:5000/agent:1", ("Registry.Example.com:5000/agent", "1", "")),
        ("localhost/agent", ("localhost/agent", "", "")),
        ("localhost:5000/agent", ("localhost:5000/agent", "", "")),
        ("[fd00::1]:5000/agent:1", ("[fd00::1]:5000/agent", "1", "")),
        (f"acme/agent@{DIGEST}", ("acme/agent", "", DIGEST)),
        (f"acme/agent:1@{DIGEST}", ("acme/agent", "1", DIGEST)),
        (f"acme/agent@sha512:{'a' * 128}", ("acme/agent", "", f"sha512:{'a' * 128}")),
        (DIGEST, ("", "", DIGEST)),
        ("ab36c51b6172:1", ("ab36c51b6172", "1", "")),
        ("acme/ab36c51b6172", ("acme/ab36c51b6172", "", "")),
        ("ada", ("ada", "", "")),
    ],
)
def test_parse_takes_a_reference_apart(text, parts):
    assert parse(text) == parse_pattern(text) == Reference(*parts)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a b", "a\n", "\na", "a\0", "é", "a" * 256, "acme/agent:x/../../other:1", "../agent", "acme/../agent", "./agent",
        "/agent", "acme/", "acme//agent", "acme/agent:", "acme/agent:.x", "acme/agent:-x", "acme/agent:a:b", "acme/agent:a/b",
        "acme/agent:" + "x" * 129, "Acme/agent", "AGENT", "acme/-agent", "acme/agent-", "acme/a..b", "acme/a___b", "agent?x=1",
        "agent#x", "agent%2fx", "acme\\agent", "acme/agent@", "acme/agent@sha256:abc", f"acme/agent@md5:{'a' * 32}",
        f"acme/agent@{DIGEST.upper()}", f"acme/agent@{DIGEST}/json", "acme/*", "acme/agent:*", "acme/agent:[12]", "acme/agent:?",
        "[fd00::1/agent", "host:port/agent", "http://registry/agent:1",
    ],
)  # fmt: skip
def test_parse_refuses_every_other_text(text):
    with pytest.raises(ValueError, match="must be the name of an image"):
        parse(text)


@pytest.mark.parametrize("text", ["ab36", "ab36c51b6172", HEX, "sha256:ab36c51b6172", "sha256", f"{DIGEST}0", f"sha512:{HEX}"])
def test_parse_refuses_a_name_that_could_mean_an_id(text):
    for read in (parse, parse_pattern):
        with pytest.raises(ValueError, match="must be the name of an image"):
            read(text)


@pytest.mark.parametrize(
    "text", ["*", "*/*", "acme/*", "acme/agent-*:1.*", "*:*", "*.example.com/agent:*", "[fd00::1]:5000/*", f"*@{DIGEST}", "cafe*"]
)
def test_parse_pattern_takes_stars(text):
    assert "*" in parse_pattern(text).repository + parse_pattern(text).tag
    with pytest.raises(ValueError, match="must be"):
        parse(text)


@pytest.mark.parametrize(
    "text", ["acme/../*", "acme /*", "acme/agent:*/x", "sha256:*", "*@sha256:*", "acme/[a-z]*", "?*", "/*", "*/"]
)
def test_parse_pattern_refuses_what_no_reference_could_match(text):
    with pytest.raises(ValueError, match="must be"):
        parse_pattern(text)


def test_full_writes_the_tag_that_docker_would_add():
    assert parse("demo").full() == "demo:latest"
    assert parse(f"demo@{DIGEST}").full() == f"demo@{DIGEST}"
    assert parse(f"demo:1@{DIGEST}").full() == f"demo:1@{DIGEST}"
    assert parse(DIGEST).full() == DIGEST


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("demo", ["other:1", "demo:latest"]),
        ("demo:1", ["docker.io/library/demo:1"]),
        ("docker.io/library/demo:1", ["demo:1"]),
        ("library/demo:1", ["demo:1"]),
        ("index.docker.io/acme/agent:1", ["acme/agent:1"]),
        ("localhost:5000/library/demo:1", ["localhost:5000/library/demo:1"]),
        (f"demo@{DIGEST}", ["demo:1", f"demo@{DIGEST}"]),
        (f"demo:1@{DIGEST}", ["demo:1", f"demo@{DIGEST}"]),
    ],
)
def test_has_names_is_true_of_equal_names(wanted, names):
    assert has_names(parse(wanted), names)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("demo", []),
        ("demo", ["demo:1"]),
        ("demo:1", ["demo:2", "other:1", "<none>:<none>", f"demo@{DIGEST}"]),
        ("demo:1", ["localhost:5000/demo:1", "localhost:5000/library/demo:1"]),
        ("acme/agent:1", ["library/acme/agent:1", "example.com/acme/agent:1"]),
        (f"demo@{DIGEST}", ["demo:latest", f"other@{DIGEST}"]),
        (f"demo:1@{DIGEST}", ["demo:2", f"demo@{DIGEST}"]),
        (f"demo:1@{DIGEST}", ["demo:1"]),
    ],
)
def test_has_names_is_false_of_other_names(wanted, names):
    assert not has_names(parse(wanted), names)
