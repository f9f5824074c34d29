from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from filmloop.config.loader import DEFAULT_SITE, find_home, find_site, load_site, parse_site
from filmloop.config.schema import ReplaySource, SimulatorSource, SiteConfig
from filmloop.core.errors import ConfigError

LOCAL = Path(__file__).parents[3] / DEFAULT_SITE


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_site(values, where="site.toml")
    assert "docs/reference/config.md" in caught.value.hint
    return caught.value.message


def site_file(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text)
    return path


def test_an_empty_file_is_a_whole_site(tmp_path: Path) -> None:
    assert load_site(site_file(tmp_path, "")) == SiteConfig()


def test_the_shipped_site_is_valid_and_local() -> None:
    config = load_site(LOCAL)
    assert (config.site, config.mover.kind, config.launcher.kind) == ("local", "local", "local")
    assert config.frame_shape == (16, 128)
    assert config.registered_model == "local-mixer-16x128"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"trainig": {}}, "unknown key 'trainig', did you mean 'training'?"),
        ({"training": {"min_frame": 3}}, "unknown key 'training.min_frame', did you mean 'min_frames'?"),
        (
            {"training": {"hyper": {"batch_frame": 1}}},
            "unknown key 'training.hyper.batch_frame', did you mean 'batch_frames'?",
        ),
        ({"edge": {"qqqq": 1}}, "unknown key 'edge.qqqq'."),
        (
            {"source": {"kind": "replay", "path": "x", "rate": 1}},
            "unknown key 'source.rate', did you mean 'rate_hz'?",
        ),
        (
            {"source": {"kind": "simulator", "conditions": {"kick": 1}}},
            "unknown key 'source.conditions.kick', did you mean 'kick_bin'?",
        ),
        ({"source": {"kind": "simulator", "path": "x"}}, "unknown key 'source.path'"),
        ({"source": {"kind": "replay"}}, "source.path must be given"),
        ({"source": {"kind": "kafka"}}, "source.kind has to be one of 'pvaccess', 'replay', 'simulator', 'zeromq'"),
        ({"source": {"path": "x"}}, "source.kind has to be one of 'pvaccess', 'replay', 'simulator', 'zeromq'"),
        ({"mover": {"kind": "carrier-pigeon"}}, "mover.kind has to be one of 'globus', 'local', not 'carrier-pigeon'"),
        ({"launcher": {"processes": 0}}, "launcher.processes must be at least 1, not 0"),
        ({"site": "LCLS"}, "site must be small letters, digits and hyphens"),
        ({"edge": 3}, "edge must be a section with keys of its own, not 3"),
        (
            {"staging": {"keep_shards": 5, "max_shards": 4}},
            "site.toml: staging: keep_shards = 5 is above max_shards = 4.",
        ),
        ({"gate": {"confidence": 2}}, "gate.confidence must be below 1, not 2"),
        ({"training": {"min_frames": "many"}}, "training.min_frames must be a whole number, not 'many'"),
        (
            {"source": {"kind": "simulator", "drift": [{"from_frame": 1, "set": {"kick": 1}}]}},
            "site.toml: source.drift[0]: drift sets kick",
        ),
        ({"schema_version": 2}, "schema_version must be 1, not 2"),
        ({"training": {"seed": 2**64}}, "training.seed must be at most 1000000000000000000, not"),
        ({"training": {"holdout": {"seed": 2**64}}}, "training.holdout.seed must be at most 1"),
        ({"source": {"kind": "simulator", "seed": 2**64}}, "source.seed must be at most 1"),
        (
            {"training": {"hyper": {"batch_frames": 10**13}}},
            "training.hyper.batch_frames must be at most 1000000, not 10000000000000",
        ),
        (
            {"training": {"hyper": {"max_epochs": 10**400}}},
            "training.hyper.max_epochs must be at most 1000000, not a number of 401 digits",
        ),
        (
            {"training": {"hyper": {"batch_frames": 1}}},
            "site.toml: training.hyper.batch_frames = 1 is below the 2 ranks of [launcher]",
        ),
        (
            {
                "training": {"hyper": {"batch_frames": 7}},
                "launcher": {"kind": "slurm", "nodes": 2, "processes_per_node": 4},
            },
            "is below the 8 ranks",
        ),
    ],
)
def test_a_refusal_names_the_key_and_what_it_may_be(values: dict[str, Any], says: str) -> None:
    message = refusal(values)
    assert says in message
    assert message.startswith("site.toml: ")


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "simulator"},
        {"kind": "replay", "path": "x"},
        {"kind": "zeromq", "endpoints": ["tcp://localhost:1"]},
        {"kind": "pvaccess", "channel": "x"},
    ],
    ids=lambda source: source["kind"],
)
def test_a_run_number_has_six_digits_at_most(source: dict[str, Any]) -> None:
    assert parse_site({"source": {**source, "run_number": 999_999}}).source.run_number == 999_999
    assert "run_number must be at most 999999, not 1000000" in refusal({"source": {**source, "run_number": 10**6}})


def test_all_problems_are_told_at_once() -> None:
    message = refusal({"edge": {"thread": 1}, "gate": {"seed": -1}})
    assert "'edge.thread', did you mean 'threads'?" in message
    assert "gate.seed" in message


def test_a_launcher_without_a_kind_is_the_local_one() -> None:
    launcher = parse_site({"launcher": {"processes": 3}}).launcher
    assert launcher.kind == "local"
    assert launcher.processes == 3


def test_the_kind_chooses_the_source() -> None:
    assert isinstance(parse_site({"source": {"kind": "simulator"}}).source, SimulatorSource)
    assert isinstance(parse_site({"source": {"kind": "replay", "path": "x.h5"}}).source, ReplaySource)


def test_overrides_replace_single_keys_and_are_checked_as_well(tmp_path: Path) -> None:
    path = site_file(tmp_path, "[training]\nmin_frames = 5\nseed = 3\n")
    config = load_site(path, overrides={"training.min_frames": 10, "training.hyper.train_s": 2.5, "edge.threads": 2})
    assert (config.training.min_frames, config.training.seed) == (10, 3)
    assert (config.training.hyper.train_s, config.edge.threads) == (2.5, 2)
    with pytest.raises(ConfigError, match=r"training\.min_fames"):
        load_site(path, overrides={"training.min_fames": 10})
    with pytest.raises(ConfigError, match="not a section"):
        load_site(site_file(tmp_path, "edge = 3\n"), overrides={"edge.threads": 2})


def test_a_whole_section_can_be_replaced(tmp_path: Path) -> None:
    path = site_file(tmp_path, '[source]\nkind = "simulator"\nseed = 4\n')
    config = load_site(path, overrides={"source": {"kind": "replay", "path": "x.h5"}})
    assert isinstance(config.source, ReplaySource)


def test_what_is_no_toml_is_a_config_error_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2"):
        load_site(site_file(tmp_path, "site = 'local'\nhome =\n"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_site(tmp_path / "bytes.toml")


def test_an_absent_or_odd_file_is_a_config_error(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(ConfigError):
            load_site(path)


def test_a_resolved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load_site(LOCAL, overrides={"training.seed": 9})
    (tmp_path / "config.json").write_text(json.dumps(config.as_json()))
    again = load_site(tmp_path / "config.json")
    assert again == config
    assert again.digest() == config.digest() != load_site(LOCAL).digest()


def test_the_site_file_is_the_given_one_else_the_environments_else_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, env, default = tmp_path / "given.toml", tmp_path / "env.toml", tmp_path / DEFAULT_SITE
    default.parent.mkdir()
    for path in (given, env, default):
        path.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FILMLOOP_SITE", raising=False)
    assert find_site(None) == default
    monkeypatch.setenv("FILMLOOP_SITE", str(env))
    assert find_site(None) == env
    assert find_site(given) == given


def test_a_site_file_that_is_not_there_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FILMLOOP_SITE", raising=False)
    with pytest.raises(ConfigError, match=r"local\.toml") as caught:
        find_site(None)
    assert "--site" in caught.value.hint
    monkeypatch.setenv("FILMLOOP_SITE", "absent.toml")
    with pytest.raises(ConfigError, match=r"No site file at absent\.toml, which FILMLOOP_SITE names"):
        find_site(None)
    for given, says in (("x" * 300, "No site file at xxx"), (str(tmp_path), "is a folder, not a site file")):
        with pytest.raises(ConfigError, match=says) as caught:
            find_site(Path(given))
        assert "FILMLOOP_SITE" not in caught.value.message


def test_state_lies_beside_the_site_file_unless_filmloop_home_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site_configs" / "local.toml"
    monkeypatch.delenv("FILMLOOP_HOME", raising=False)
    assert find_home(SiteConfig(), site).root == tmp_path / ".filmloop"
    assert find_home(SiteConfig(home="/var/lib/filmloop"), site).root == Path("/var/lib/filmloop")
    monkeypatch.setenv("FILMLOOP_HOME", str(tmp_path / "elsewhere"))
    home = find_home(SiteConfig(), site)
    places = {name: getattr(home, name) for name, value in vars(type(home)).items() if isinstance(value, property)}
    assert len(set(places.values())) == len(places) > 5
    assert all(place.is_relative_to(tmp_path / "elsewhere") for place in places.values())


def test_configurations_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SiteConfig().site = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["it's", "a/b", "a:b", "..", ".hidden", 'a"b', "x" * 81, "a\nb"])
def test_a_name_that_the_registry_would_refuse_after_the_training_is_refused_at_once(name: str) -> None:
    assert "model.registered_as" in refusal({"model": {"registered_as": name}})


@pytest.mark.parametrize("name", ["mine", "My model 2", "Ångström 50%", "a_b-c.d"])
def test_a_name_that_the_registry_takes_is_taken(name: str) -> None:
    assert parse_site({"model": {"registered_as": name}}).registered_model == name


def test_a_password_in_the_address_of_the_registry_is_refused_and_not_repeated() -> None:
    said = refusal({"registry": {"uri": "https://anna:hunter2@mlflow.example.org/registry"}})
    assert "registry.uri" in said
    assert "MLFLOW_TRACKING_PASSWORD" in said
    assert "hunter2" not in said
    assert parse_site({"registry": {"uri": "https://mlflow.example.org/@anna"}}).registry.uri


def test_a_custom_spec_gives_a_name_that_a_registry_takes() -> None:
    config = parse_site({"model": {"name": "my_package.nets:SPEC"}})
    assert config.registered_model == "local-my_package.nets.SPEC-16x128"
    assert parse_site({"model": {"registered_as": "mine"}}).registered_model == "mine"


def test_a_recording_is_named_relative_to_the_site_file_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sites").mkdir()
    site = tmp_path / "sites" / "site.toml"
    site.write_text('[source]\nkind = "replay"\npath = "../data/frames.h5"\n')
    monkeypatch.chdir("/")
    source = load_site(site).source
    assert isinstance(source, ReplaySource)
    assert Path(source.path).resolve() == tmp_path / "data" / "frames.h5"
