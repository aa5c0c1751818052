import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from shimmy.config import OPTIONS, Config, load
from shimmy.messages.model_info import ModelDefaults
from shimmy.messages.request import SamplingParams
from shimmy.option_kinds import ALL_LAYERS, DEFAULT_HOST, Bind, ConfigError, Option
from shimmy.rpc.address import Address

# Of each option: a text of a flag or variable, the same in TOML, where the Config has it, and its value there.
VALUES: dict[str, tuple[str, Any, str, Any]] = {
    "bind": ("0.0.0.0:80", "0.0.0.0:80", "bind", Bind("0.0.0.0", 80)),
    "model_path": ("/a.gguf", ["/a.gguf"], "model_paths", (Path("/a.gguf"),)),
    "model_dirs": ("/a:/b", ["/a", "/b"], "model_dirs", (Path("/a"), Path("/b"))),
    "cache_dir": ("/cache", "/cache", "cache_dir", Path("/cache")),
    "ctx_size": ("4096", 4096, "n_ctx", 4096),
    "parallel": ("3", 3, "n_sequences", 3),
    "batch_size": ("64", 64, "n_batch", 64),
    "threads": ("2", 2, "n_threads", 2),
    "keep_alive": ("10m", 600, "keep_alive_s", 600.0),
    "max_memory": ("1.5G", "1.5G", "max_memory_bytes", 1_500_000_000),
    "prompt_cache": ("2GiB", "2GiB", "prompt_cache_bytes", 2**31),
    "worker_timeout": ("1.5m", "90", "worker_timeout_s", 90.0),
    "load_timeout": ("-1", -1, "load_timeout_s", math.inf),
    "max_queue": ("0", 0, "max_queue", 0),
    "preload": ("a,b", ["a", "b"], "preload", ("a", "b")),
    "alias": ("a=b,c*=d", ["a=b", "c*=d"], "aliases", (("a", "b"), ("c*", "d"))),
    "default_model": ("tiny", "tiny", "default_model", "tiny"),
    "safetensors_type": ("Q8_0", "q8_0", "safetensors_type", "q8_0"),
    "imatrix": ("/m.gguf", "/m.gguf", "imatrix", Path("/m.gguf")),
    "device": ("Vulkan1, Vulkan0", "Vulkan1,Vulkan0", "devices", ("Vulkan1", "Vulkan0")),
    "gpu_layers": ("7", 7, "gpu_layers", 7),
    "tensor_split": ("3,0.5", [3, 0.5], "tensor_split", (3.0, 0.5)),
    "n_cpu_moe": ("5", 5, "n_cpu_moe", 5),
    "device_required": ("on", True, "device_required", True),
    "rpc": (
        "localhost:7,[::1]",
        ["localhost:7", "[::1]"],
        "rpc",
        (Address("localhost", 7), Address("::1", 50052)),
    ),
    "rpc_key_file": ("/key", "/key", "rpc_key_file", Path("/key")),
    "rpc_timeout": ("1m", 60, "rpc_timeout_s", 60.0),
    "kv_type": ("Q8_0", "q8_0", "kv_type", "q8_0"),
    "weights": ("Mapped", "mapped", "weights", "mapped"),
    "speculation": ("off", False, "speculate", False),
    "draft_model": ("/draft.gguf", "/draft.gguf", "draft_model", Path("/draft.gguf")),
    "embeddings": ("on", True, "embeddings", True),
    "pooling": ("LAST", "last", "pooling", "last"),
    "seed": ("0", 0, "sampling", SamplingParams(seed=0)),
    "temp": ("0", 0.0, "sampling", SamplingParams(temperature=0)),
    "n_predict": ("9", 9, "n_predict", 9),
    "chat_template": ("{{ 1 }}", "{{ 1 }}", "chat_template", "{{ 1 }}"),
    "lora": (
        "/a.gguf=0.5:/b=c.gguf=-1:/d.gguf",
        ["/a.gguf=0.5", "/b=c.gguf=-1", "/d.gguf"],
        "lora",
        ((Path("/a.gguf"), 0.5), (Path("/b=c.gguf"), -1.0), (Path("/d.gguf"), 1.0)),
    ),
    "api_key": ("one,two", ["one", "two"], "api_keys", ("one", "two")),
    "allowed_hosts": ("A.example, *.b", ["a.example", "*.b"], "allowed_hosts", ("a.example", "*.b")),
    "cors_origins": (
        "https://A.example:443/,null",
        ["https://a.example", "null"],
        "cors_origins",
        ("https://a.example", "null"),
    ),
    "max_connections": ("7", 7, "max_connections", 7),
    "metrics": ("false", False, "metrics", False),
    "max_body_mb": ("2", 2, "max_body_bytes", 2 * 2**20),
    "cpu_variant": ("haswell", "haswell", "cpu_variant", "haswell"),
    "log_level": ("ERROR", "error", "log_level", "error"),
    "log_format": ("json", "json", "log_format", "json"),
}
# Another text for each, which must lose.
OTHERS = {
    "bind": "9.9.9.9:9", "model_path": "/other", "model_dirs": "/other", "metrics": "true", "log_level": "debug",
    "log_format": "text", "chat_template": "other", "api_key": "other", "cpu_variant": "other", "temp": "1",
    "speculation": "true", "embeddings": "false", "pooling": "mean", "cache_dir": "/other", "alias": "x=y",
    "cors_origins": "*", "safetensors_type": "f16", "weights": "repacked", "lora": "/other", "draft_model": "/other",
    "kv_type": "q4_0",
    "imatrix": "/other", "device_required": "false", "rpc": "localhost:9", "rpc_key_file": "/other",
}  # fmt: skip
FILES = ("chat_template_file", "api_key_file")

by_name = {option.name: option for option in OPTIONS}
every_option = pytest.mark.parametrize("name", VALUES)


def value(name: str, flags: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, Any]) -> Any:
    return getattr(load(flags, environment, file), VALUES[name][2])


def other(name: str) -> str:
    return OTHERS.get(name, "99")


def test_this_table_knows_every_option_and_reaches_every_field() -> None:
    assert {*VALUES, *FILES} == set(by_name)
    assert {row[2] for row in VALUES.values()} == {field.name for field in fields(Config)} - {
        "alias_file",
        "usual_dirs",
        "sampling_given",
    }


# -- where a value comes from ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "environment", "file"),
    [({"temp": "0.8"}, {}, {}), ({}, {"SHIMMY_TEMP": "0.8"}, {}), ({}, {}, {"temp": 0.8})],
)
def test_what_was_set_beats_what_a_model_brings(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, Any]
) -> None:
    own = load(flags, environment, file)
    brought = ModelDefaults((("temperature", 0.3), ("top_k", 7)))
    assert own.sampling_of(brought) == SamplingParams(temperature=0.8, top_k=7)
    assert own.sampling_of(ModelDefaults()) == SamplingParams()
    assert load({}, {}).sampling_of(brought) == SamplingParams(temperature=0.3, top_k=7)


@every_option
def test_the_default_is_not_the_value_tested_here(name: str) -> None:
    assert value(name, {}, {}, {}) != VALUES[name][3]


@every_option
def test_a_file_beats_the_default(name: str) -> None:
    _, toml, _, expected = VALUES[name]
    assert value(name, {}, {}, {name: toml}) == expected


@every_option
def test_a_variable_beats_the_file(name: str) -> None:
    text, _, _, expected = VALUES[name]
    for variable in (by_name[name].variable, *by_name[name].variables):
        assert value(name, {}, {variable: text}, {name: other(name)}) == expected


@every_option
def test_a_flag_beats_everything(name: str) -> None:
    text, toml, _, expected = VALUES[name]
    flag = toml if by_name[name].separators else text  # each item in a flag of its own
    assert value(name, {name: flag}, {by_name[name].variable: other(name)}, {name: other(name)}) == expected


@every_option
def test_flags_not_given_and_empty_variables_count_for_nothing(name: str) -> None:
    _, toml, _, expected = VALUES[name]
    assert value(name, {name: None}, {by_name[name].variable: ""}, {name: toml}) == expected


def test_our_own_variable_comes_before_the_others() -> None:
    assert load({}, {"SHIMMY_CTX_SIZE": "64", "SHIMMY_MAX_CTX": "32"}).n_ctx == 64


def test_flags_that_are_no_options_are_others_business() -> None:
    assert load({"command": "serve", "json": True}, {}) == load({}, {})


# -- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_a_row_is_complete(option: Option) -> None:
    assert option.flag == "--" + option.name.replace("_", "-")
    assert option.variable == "SHIMMY_" + option.name.upper()
    assert option.help
    assert not option.help.endswith(".")
    assert "%" not in option.help, "argparse would read it as a format"
    assert option.is_switch or option.metavar
    assert isinstance(option.default, tuple) == bool(option.separators)


def test_no_two_rows_claim_one_name() -> None:
    names = [name for option in OPTIONS for name in (option.variable, *option.variables)]
    assert len(names) == len(set(names))
    assert len(by_name) == len(OPTIONS)


@pytest.mark.parametrize(
    ("variable", "text", "field", "expected"),
    [
        ("SHIMMY_BASE_GGUF", "/m.gguf", "model_paths", (Path("/m.gguf"),)),
        ("SHIMMY_MODEL_PATHS", "/a:/b", "model_dirs", (Path("/a"), Path("/b"))),
        ("SHIMMY_MODEL_PATHS", "/a;/b;", "model_dirs", (Path("/a"), Path("/b"))),
        ("SHIMMY_BIND_ADDRESS", "[::1]:5", "bind", Bind("::1", 5)),
        ("SHIMMY_PORT", "80", "bind", Bind(DEFAULT_HOST, 80)),
        ("SHIMMY_HOST", "0.0.0.0", "bind", Bind("0.0.0.0", None)),
        ("SHIMMY_HOST", "[::1]", "bind", Bind("::1", None)),
        ("SHIMMY_MAX_CTX", "256", "n_ctx", 256),
        ("SHIMMY_LOG_LEVEL", "debug", "log_level", "debug"),
        ("SHIMMY_LORA_GGUF", "/a.gguf:/b.gguf=0", "lora", ((Path("/a.gguf"), 1.0), (Path("/b.gguf"), 0.0))),
    ],
)
def test_the_variables_of_the_contract(variable: str, text: str, field: str, expected: object) -> None:
    assert getattr(load({}, {variable: text}), field) == expected


# -- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["host:", "host:port", "host:65536", "host:-1", "[::1]:x"])
def test_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--bind: "):
        load({"bind": text}, {})


def test_the_old_variables_complete_an_address_nobody_gave() -> None:
    assert load({}, {"SHIMMY_HOST": "::1", "SHIMMY_PORT": "80"}).bind == Bind("::1", 80)
    assert load({}, {"SHIMMY_PORT": "80"}, {"bind": "1.2.3.4:5"}).bind == Bind("1.2.3.4", 80)
    assert load({"bind": "1.2.3.4:5"}, {"SHIMMY_HOST": "::1", "SHIMMY_PORT": "80"}).bind == Bind("1.2.3.4", 5)


@pytest.mark.parametrize("variable", ["SHIMMY_BIND", "SHIMMY_BIND_ADDRESS"])
def test_the_old_variables_do_not_change_an_address_given_as_a_whole(variable: str) -> None:
    environment = {variable: "1.2.3.4:5", "SHIMMY_HOST": "::1", "SHIMMY_PORT": "80"}
    assert load({}, environment).bind == Bind("1.2.3.4", 5)


def test_a_port_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^SHIMMY_PORT: must be between 0 and 65535"):
        load({}, {"SHIMMY_PORT": "65536"})


@pytest.mark.parametrize("url", ["tcp://10.0.0.1:80", "udp://10.0.0.1:53", "tcp://[fd00::1]:80", "sctp://1.2.3.4:5"])
def test_what_kubernetes_and_docker_set_for_a_service_called_shimmy_means_nothing(url: str) -> None:
    environment = {
        "SHIMMY_PORT": url, "SHIMMY_SERVICE_HOST": "10.0.0.1", "SHIMMY_SERVICE_PORT": "80",
        "SHIMMY_SERVICE_PORT_HTTP": "80", "SHIMMY_PORT_80_TCP": url, "SHIMMY_PORT_80_TCP_PROTO": "tcp",
        "SHIMMY_PORT_80_TCP_PORT": "80", "SHIMMY_PORT_80_TCP_ADDR": "10.0.0.1", "SHIMMY_NAME": "/web/shimmy",
        "SHIMMY_ENV_PATH": "/bin",
    }  # fmt: skip
    assert load({}, environment) == load({}, {})
    assert load({}, environment | {"SHIMMY_HOST": "1.2.3.4"}).bind == Bind("1.2.3.4", None)
    assert load({}, environment | {"SHIMMY_BIND": "1.2.3.4:5"}).bind == Bind("1.2.3.4", 5)


# -- keys, hosts and origins -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["SHIMMY_API_KEY", "SHIMMY_API_KEY_FILE"])
@pytest.mark.parametrize("blank", ["", " ", "\n", ",", " , "])
def test_a_key_that_is_set_to_nothing_does_not_open_the_server(variable: str, blank: str) -> None:
    with pytest.raises(ConfigError, match=f"^{variable}"):
        load({}, {variable: blank})


@pytest.mark.parametrize("blank", [[""], [" "], ["\t"], ["secret", " "]])
def test_no_flag_is_a_blank_key(blank: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^--api-key: is "):
        load({"api_key": blank}, {})


@pytest.mark.parametrize("file", [{"api_key": ""}, {"api_key": []}, {"api_key": [" "]}, {"api_key_file": ""}])
def test_a_configuration_file_with_a_blank_key_is_refused(file: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load({}, {}, file)


def test_an_empty_variable_is_no_matter_where_there_is_a_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\n")
    assert load({"api_key": ["one"]}, {"SHIMMY_API_KEY": ""}).api_keys == ("one",)
    assert load({}, {"SHIMMY_API_KEY": "", "SHIMMY_API_KEY_FILE": str(tmp_path / "keys")}).api_keys == ("one",)


def test_white_space_around_a_key_is_none_of_it() -> None:
    assert load({}, {"SHIMMY_API_KEY": "secret\n"}).api_keys == ("secret",)


@pytest.mark.parametrize(
    ("name", "text", "field", "expected"),
    [
        ("device", "AUTO", "devices", None),
        ("device", "none", "devices", ()),
        ("device", "vulkan1,VULKAN0", "devices", ("Vulkan1", "Vulkan0")),
        ("device", "cuda1,Vulkan0", "devices", ("CUDA1", "Vulkan0")),
        ("gpu_layers", "auto", "gpu_layers", None),
        ("gpu_layers", "All", "gpu_layers", ALL_LAYERS),
    ],
)
def test_words_in_the_place_of_devices_and_layers(name: str, text: str, field: str, expected: object) -> None:
    assert getattr(load({name: text}, {}), field) == expected


@pytest.mark.parametrize("other", [{"device": "none"}, {"gpu_layers": "0"}])
def test_a_device_is_not_required_and_refused_at_once(other: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="--device-required allows neither"):
        load({"device_required": "true", **other}, {})


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("gpu_layers", "five", "must be `auto`, `all` or a number of layers (got 'five')"),
        ("tensor_split", "3,x", "must be a number (got '3,x')"),
        ("parallel", "many", "must be a whole number (got 'many')"),
        ("keep_alive", "soon", "must be a time such as 90, 10m, 2h (got 'soon')"),
        ("max_memory", "much", "must be a size such as 4G or 512M (got 'much')"),
    ],
)
def test_what_is_no_number_is_told_in_words_for_a_person(name: str, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({name: text}, {})
    assert str(caught.value) == f"{by_name[name].flag}: {told}"


def test_a_file_has_lists_as_flags_have_them_and_as_lists() -> None:
    config = load({}, {}, {"device": ["Vulkan1", "Vulkan0"], "tensor_split": "3,1"})
    assert (config.devices, config.tensor_split) == (("Vulkan1", "Vulkan0"), (3, 1))
    with pytest.raises(ConfigError, match=r"`device` in the configuration file: .*names such as CUDA0 or Vulkan0"):
        load({}, {}, {"device": ["Vulkan1", "cuda"]})
    assert load({}, {}, {"model_path": "/a:b.gguf"}).model_paths == (Path("/a:b.gguf"),)


def test_shares_that_add_up_to_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="--tensor-split: one of the shares must be more than 0"):
        load({"tensor_split": "0,0"}, {})
    assert load({"tensor_split": "0,1"}, {}).tensor_split == (0, 1)


def test_shares_are_as_many_as_the_devices_that_are_named() -> None:
    with pytest.raises(ConfigError, match="--tensor-split has 3 numbers for the 2 devices of --device"):
        load({"device": "Vulkan0,Vulkan1", "tensor_split": "1,1,2"}, {})
    with pytest.raises(ConfigError, match="--tensor-split has 2 numbers for the 1 device of --device"):
        load({"device": "Vulkan0", "tensor_split": "1,1"}, {})
    for device, more in (("auto", {}), ("none", {}), ("Vulkan0", {"rpc": ["127.0.0.1:50052"]})):
        load({"device": device, "tensor_split": "1,1,2", **more}, {})  # how many there will be is not known yet


# -- values that cannot be -------------------------------------------------------------------------------------------

REFUSED = [
    ("parallel", "0"), ("parallel", "257"), ("parallel", "many"), ("parallel", "1.5"), ("ctx_size", "15"),
    ("batch_size", "31"), ("threads", "0"), ("seed", "-1"), ("seed", str(2**32)), ("n_predict", "0"),
    ("temp", "-0.1"), ("temp", "nan"), ("temp", "inf"), ("temp", "warm"), ("metrics", "perhaps"),
    ("lora", "/a.gguf=x"), ("lora", "/a.gguf=nan"), ("lora", "/a.gguf=101"), ("lora", "/a.gguf="), ("lora", "=1"),
    ("log_level", "loud"), ("log_format", "xml"), ("max_body_mb", "0"), ("allowed_hosts", "a.example:80"),
    ("allowed_hosts", "http://a.example"), ("cors_origins", "a.example"), ("cors_origins", "https://a/b"),
    ("cors_origins", "https://"), ("device", ","), ("device", "cuda"), ("device", "gpu"), ("device", "none,Vulkan0"),
    ("device", "auto,Vulkan1"), ("device", "Vulkan"), ("device", "Vulkan01"), ("device", "vulkan0,Vulkan0"),
    ("device", "Vulkan0,Vulkan0"), ("gpu_layers", "-1"),
    ("gpu_layers", "some"), ("tensor_split", "-1"), ("tensor_split", "nan"), ("device_required", "perhaps"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), REFUSED)
def test_a_refusal_names_the_source_as_the_person_wrote_it(name: str, text: str) -> None:
    option = by_name[name]
    variables = (option.variable, *option.variables)
    sources: list[tuple[str, dict[str, Any]]] = [
        (option.flag, {"flags": {name: text}}),
        (f"`{name}` in the configuration file", {"file": {name: text}}),
        *((variable, {"environment": {variable: text}}) for variable in variables),
    ]
    for source, arguments in sources:
        with pytest.raises(ConfigError) as caught:
            load(**({"flags": {}, "environment": {}} | arguments))
        assert str(caught.value).startswith(f"{source}: ")
        assert text in str(caught.value)


def test_numbers_of_a_toml_file_have_the_same_bounds() -> None:
    with pytest.raises(ConfigError, match="`temp` in the configuration file: must be between 0 and 100"):
        load({}, {}, {"temp": math.inf})
    with pytest.raises(ConfigError, match="`parallel`"):
        load({}, {}, {"parallel": 0})


@pytest.mark.parametrize(
    ("name", "item"),
    [("chat_template", ["a", "b"]), ("bind", {"host": "::1"}), ("cpu_variant", True), ("api_key", [["nested"]])],
)
def test_a_toml_value_of_another_kind_is_refused_and_not_taken_as_its_text(name: str, item: object) -> None:
    with pytest.raises(ConfigError, match=f"`{name}` in the configuration file"):
        load({}, {}, {name: item})


def test_unknown_keys_of_the_file_are_all_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown keys: ctx-size, modell; did you mean `ctx_size`"):
        load({}, {}, {"modell": 1, "ctx-size": 2, "parallel": 3})


# -- lists -----------------------------------------------------------------------------------------------------------


def test_a_repeatable_flag_and_a_list_in_one_variable_are_the_same() -> None:
    expected = (Path("/a"), Path("/b"))
    assert load({"model_path": ["/a", "/b"]}, {}).model_paths == expected
    assert load({}, {"SHIMMY_MODEL_PATH": "/a:/b"}).model_paths == expected
    assert load({}, {}, {"model_path": ["/a", "/b"]}).model_paths == expected
    assert load({}, {}, {"model_path": "/a"}).model_paths == (Path("/a"),)


def test_a_tilde_is_the_persons_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert load({}, {"SHIMMY_MODEL_DIRS": "~/models:/b"}).model_dirs == (Path("/home/ann/models"), Path("/b"))


# -- files that options name -----------------------------------------------------------------------------------------


def test_keys_of_a_file_join_the_others(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("two\n\n  three  \n")
    assert load({"api_key": ["one"], "api_key_file": str(path)}, {}).api_keys == ("one", "two", "three")
    assert load({}, {"SHIMMY_API_KEY_FILE": str(path)}).api_keys == ("two", "three")


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_a_key_file_without_a_key_does_not_open_the_server(content: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"^--api-key-file: "):
        load({"api_key_file": str(path)}, {})


def test_an_empty_key_does_not_open_the_server() -> None:
    """`--api-key "$KEY"` with KEY unset: the person wants the server closed."""
    with pytest.raises(ConfigError, match=r"^--api-key: "):
        load({"api_key": [""]}, {})


def test_a_flag_is_one_path_or_key_whatever_is_in_it() -> None:
    config = load({"model_path": ["/a:b,c"], "api_key": ["one,two"], "model_dirs": ["/a:/b"]}, {})
    assert config.model_paths == (Path("/a:b,c"),)
    assert config.api_keys == ("one,two",)
    assert config.model_dirs == (Path("/a"), Path("/b"))


def test_a_template_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ 'é' }}\n", encoding="utf-8")
    assert load({"chat_template_file": str(path)}, {}).chat_template == "{{ 'é' }}\n"


def test_a_template_on_the_command_line_beats_a_file_in_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("from the file")
    environment = {"SHIMMY_CHAT_TEMPLATE_FILE": str(path)}
    assert load({"chat_template": "from the flag"}, environment).chat_template == "from the flag"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named_with_its_option(name: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{by_name[name].flag}: cannot read `{path}`: "):
        load({name: str(path)}, {})
    with pytest.raises(ConfigError, match=f"^{by_name[name].variable}: cannot read `{path}`: "):
        load({}, {by_name[name].variable: str(path)})


# -- sizes and aliases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "1X", "one", "nan", "inf", "1i", "1e99G", "1G2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-memory"):
        load({"max_memory": text}, {})


@pytest.mark.parametrize("text", ["", "a", "a=", "=b"])
def test_what_is_no_alias(text: str) -> None:
    with pytest.raises(ConfigError, match="--alias"):
        load({"alias": [text]}, {})


def test_other_machines_need_a_key_unless_they_are_this_one() -> None:
    assert load({"rpc": ["localhost,127.0.0.1:7"]}, {}).rpc == (Address("localhost", 50052), Address("127.0.0.1", 7))
    with pytest.raises(ConfigError, match=r"--rpc 10\.0\.0\.2:50052: another machine needs a key"):
        load({"rpc": ["localhost,10.0.0.2"]}, {})
    assert load({"rpc": ["10.0.0.2"], "rpc_key_file": "/key"}, {}).rpc_key_file == Path("/key")


@pytest.mark.parametrize("text", ["", "host:", "host:0", "host:65536", "host:x", "a b:1", "http://host:1", "[::1]:x"])
def test_what_is_no_address_of_a_machine(text: str) -> None:
    with pytest.raises(ConfigError, match="--rpc"):
        load({"rpc": [f"localhost,{text}" if text else ","]}, {})
