"""What is wrong with a site file is said in words, at the key, and of whoever gave the value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filmloop.bootstrap import open_site
from filmloop.config.loader import load_site, parse_site
from filmloop.config.schema import SiteConfig
from filmloop.core.errors import ConfigError

CHECKOUT = Path(__file__).parents[3]
VENDOR = re.compile(
    r"Input should|Value error|valid (tuple|dictionary|integer|string|number)|should match|\bfile:|\^|does not fit"
)
WRONG: tuple[Any, ...] = ("maybe", "", -1, 10**40, 2.5, True, [], [{}], {}, {"x": {}}, float("nan"), float("-inf"))
GIVEN = {"replay": {"path": "x"}, "zeromq": {"endpoints": ["tcp://x:1"]}, "pvaccess": {"channel": "x"}}


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_site(values, where="site.toml")
    return caught.value.message


def sections() -> Iterator[tuple[tuple[str, ...], dict[str, Any], list[str]]]:
    """Every section: where it is, what it must hold besides, and its keys."""
    schema = SiteConfig.model_json_schema()

    def resolved(node: dict[str, Any]) -> dict[str, Any]:
        return schema["$defs"][node["$ref"].rsplit("/", 1)[-1]] if "$ref" in node else node

    def below(place: tuple[str, ...], node: dict[str, Any], base: dict[str, Any]) -> Iterator[Any]:
        yield place, base, list(node["properties"])
        for key, child in node["properties"].items():
            if mapping := child.get("discriminator", {}).get("mapping"):
                for kind, ref in mapping.items():
                    yield from below((*place, key), resolved({"$ref": ref}), {"kind": kind, **GIVEN.get(kind, {})})
            elif "properties" in resolved(child):
                yield from below((*place, key), resolved(child), {})

    yield from below((), schema, {})


OUTER = {
    ("source", "conditions"): {"kind": "simulator"}, ("source", "fields"): {"kind": "zeromq", **GIVEN["zeromq"]},
    ("mover", "edge"): {"kind": "globus"}, ("mover", "cluster"): {"kind": "globus"},
}  # fmt: skip


def nested(place: tuple[str, ...], inner: dict[str, Any]) -> dict[str, Any]:
    beside = OUTER.get(place, {})
    for key in reversed(place):
        inner, beside = {**beside, key: inner}, {}
    return inner


def refusals() -> Iterator[tuple[dict[str, Any], str]]:
    """What every key says to every wrong value."""
    for place, base, keys in sections():
        for key in keys:
            for value in WRONG:
                values = nested(place, {**base, key: value})
                try:
                    parse_site(values, where="site.toml")
                except ConfigError as exc:
                    yield values, exc.message


def test_no_key_is_refused_in_the_words_of_the_library() -> None:
    found = list(refusals())
    assert len(found) > 1000
    for values, message in found:
        assert message.startswith("site.toml: ")
        assert not VENDOR.search(message), (values, message)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"source": {"kind": "simulator", "drift": "x"}}, "source.drift must be a list, not 'x'"),
        ({"model": {"hyper": 3}}, "model.hyper must be a table of keys and values, not 3"),
        ({"model": {"hyper": {"depth": [1]}}}, "hyper.depth must be a number or text in quotes or true or false, not a list"),
        (
            {"source": {"kind": "simulator", "drift": [{"from_frame": 1, "set": {"gain": ["a"]}}]}},
            "site.toml: source.drift[0].set.gain[0] must be a whole number, not 'a'.",
        ),
        ({"globus": {"client_id": "mine"}}, "globus.client_id must be a UUID such as "),
        ({"launcher": {"kind": "slurm", "account": "a b"}}, "launcher.account must be one word"),
        ({"registry": {"experiment": 2026}}, "registry.experiment must be text in quotes, not 2026"),
        ({"model": {"registered_as": "lcls/mixer"}}, "model.registered_as must be a name of up to 80 characters without / :"),
        ({"model": {"registered_as": ".."}}, "model.registered_as must be a name"),
        ({"registry": {"experiment": ""}}, "registry.experiment must not be empty"),
        ({"edge": {"tune": "maybe"}}, "edge.tune must be true or false, not 'maybe'"),
        ({"frame": {"channels": 10**5, "energy_bins": 10**5}}, "a frame of 100000 x 100000 has 10,000,000,000 bins"),
        (
            {"source": {"kind": "zeromq", "endpoints": ["tcp://a:65535", "tcp://*:99999"]}},
            "site.toml: source.endpoints[1]: tcp://*:99999 names a port above 65535.",
        ),
        ({"edge": {"ring_mb": float("inf")}}, "edge.ring_mb must be a finite number, not inf"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_the_value_must_be(values: dict[str, Any], says: str) -> None:
    assert says in refusal(values)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"launcher": {"processes": True}}, "launcher.processes"),
        ({"edge": {"ring_mb": True}}, "edge.ring_mb"),
        ({"schema_version": True}, "schema_version"),
        ({"training": {"hyper": {"max_steps": True}}}, "training.hyper.max_steps"),
        ({"source": {"kind": "simulator", "conditions": {"dead_channels": [True]}}}, "source.conditions.dead_channels[0]"),
        (
            {"source": {"kind": "simulator", "drift": [{"from_frame": 1, "set": {"gain": True}}]}},
            "source.drift[0].set.gain",
        ),
    ],
)  # fmt: skip
def test_true_is_no_number(values: dict[str, Any], key: str) -> None:
    assert f"site.toml: {key} must be a" in (message := refusal(values))
    assert message.endswith("number, not true.")


def test_true_stays_true_where_it_may_be() -> None:
    values = {"model": {"hyper": {"gate": True}}, "launcher": {"warm": False}, "edge": {"tune": True}}
    config = parse_site(values)
    assert config.model.hyper == {"gate": True}
    assert config.edge.tune is True


@pytest.mark.parametrize(
    ("values", "key", "text"),
    [
        ({"launcher": {"kind": "slurm", "account": "<project>"}}, "launcher.account", "<project>"),
        ({"launcher": {"kind": "slurm", "setup": ["cd /eagle/<your project>"]}}, "launcher.setup[0]", "<your project>"),
        ({"launcher": {"kind": "globus", "options": {"queue": "CHANGEME"}}}, "launcher.options.queue", "CHANGEME"),
        (
            {"mover": {"kind": "globus", "cluster": {"host_path": "/eagle/YOUR_PROJECT/filmloop"}}},
            "mover.cluster.host_path",
            "YOUR_PROJECT",
        ),
        ({"source": {"kind": "pvaccess", "channel": "TODO"}}, "source.channel", "TODO"),
        ({"registry": {"uri": "http://<host>:5000"}}, "registry.uri", "<host>"),
    ],
)
def test_a_placeholder_that_nobody_filled_in_is_an_error_at_its_key(
    values: dict[str, Any], key: str, text: str
) -> None:
    assert f"{key} still holds the placeholder {text}" in (message := refusal(values))
    assert message.count(key) == 1


def test_what_only_looks_like_a_placeholder_is_taken() -> None:
    setup = ["cmd <in >out", "diff <(ls a) <(ls b)", "echo a <<< b", "# TODO: remove", "if [ $A -lt 3 ]; then B=1; fi"]
    parse_site({"launcher": {"kind": "slurm", "setup": setup, "account": "todo-list", "env": {"X": "a<b"}}})
    parse_site({"launcher": {"kind": "pbs", "mpiexec": ["mpiexec", "-n", "{nodes}"]}})
    parse_site({"source": {"kind": "replay", "path": "/home/me/TODO/frames.h5"}})


def test_no_shipped_site_file_holds_a_placeholder() -> None:
    """What their users fill in is empty there, and named by the site check."""
    for path in sorted((CHECKOUT / "site_configs").glob("*.toml")):
        load_site(path)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text('[source]\nkind = "simulator"\nseed = 1\n[staging]\nmax_shards = 50\nkeep_shards = 5\n')
    return path


@pytest.mark.parametrize(
    ("sets", "source", "says"),
    [
        (["training.min_frames=many"], "", "--set training.min_frames=many: training.min_frames must be"),
        (["training.min_frame=1"], "", "--set training.min_frame=1: unknown key"),
        (["training=5"], "", "--set training=5: training must be a section"),
        ([], "simulator?rate=3", "--source 'simulator?rate=3': unknown key 'source.rate'"),
        ([], "zeromq:http://x:1", "--source zeromq:http://x:1: source.endpoints[0] must be an address"),
        (["source.rate_hz=-1"], "simulator?seed=1", "--set source.rate_hz=-1: source.rate_hz must be at least 0"),
        (["edge=3", "edge.threads=2"], "", "--set edge.threads=2: edge is 3, not a section"),
        (["launcher.kind=slurmy"], "", "--set launcher.kind=slurmy: launcher.kind has to be"),
        (["launcher.account=<project>", "launcher.kind=slurm"], "", "--set 'launcher.account=<project>': launcher.account"),
        (["training.seed=" + "9" * 5000], "", "99...: training.seed must be a whole number with fewer digits"),
    ],
)  # fmt: skip
def test_a_value_from_the_command_line_is_blamed_on_its_option(
    site: Path, sets: list[str], source: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        open_site(site, sets=sets, source=source)
    assert says in caught.value.message
    assert str(site) not in caught.value.message
    assert caught.value.ids == {}
    assert "reads the file again" not in caught.value.hint


@pytest.mark.parametrize("given", ["source.kind=replay", "staging.keep_shards=60"])
def test_keys_that_do_not_fit_together_are_blamed_on_the_file_with_the_option(site: Path, given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_site(site, sets=[given, "gate.min_frames=7"])
    assert caught.value.message.startswith(f"{site} with --set {given}: ")


def test_each_problem_is_told_of_whoever_gave_the_value(site: Path) -> None:
    site.write_text("[gate]\nseed = -1\n[edge]\nthreads = -2\n")
    with pytest.raises(ConfigError) as caught:
        open_site(site, sets=["edge.threads=-3", "edge.shed_at=4"])
    assert caught.value.message == (
        "--set edge.threads=-3: edge.threads must be at least 0, not -3. --set edge.shed_at=4: edge.shed_at must be "
        f"below 1, not 4. {site}: gate.seed must be at least 0, not -1."
    )
    assert caught.value.ids == {"path": str(site)}


@pytest.mark.parametrize("given", ["=5", "a..b=5", ".=1"])
def test_an_override_without_a_key_is_refused(site: Path, given: str) -> None:
    with pytest.raises(ConfigError, match="names no key"):
        open_site(site, sets=[given])


def test_a_file_of_another_kind_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "frames.h5").write_bytes(b"\x89HDF\xff\xfe")
    with pytest.raises(ConfigError, match=r"frames\.h5 is not valid TOML: it is no text in UTF-8\."):
        load_site(tmp_path / "frames.h5")


@pytest.mark.parametrize(("name", "text"), [("x.json", "[1]"), ("x.json", "3"), ("x.toml", f"site = {'9' * 5000}")])
def test_a_file_that_holds_no_site_at_all_is_a_config_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path / name))):
        load_site(tmp_path / name)
