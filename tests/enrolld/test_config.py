"""The node's configuration: which source counts, and how every fault is told."""

from pathlib import Path

import pytest

from ca_core.errors import OperatorError
from enrolld.config import Flags, Node, node_directory, unknown_variables
from enrolld.config_file import FILE_NAME, starting_file
from enrolld.limits import Limits
from enrolld.sockets import Address


def load(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None, **flags: object) -> Node:
    (tmp_path / FILE_NAME).write_text(text)
    return Node.load(Flags(dir=str(tmp_path), **flags), environ or {})  # type: ignore[arg-type]  # each test gives what its flag takes


def faults(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None, **flags: object) -> list[str]:
    with pytest.raises(OperatorError) as caught:
        load(tmp_path, text, environ, **flags)
    told = caught.value.message.split("\n")
    assert caught.value.code == ("usage" if any(fault.startswith("--") for fault in told) else "config_invalid")
    assert FILE_NAME in caught.value.remedy
    return told


def test_without_any_source_the_defaults_hold(tmp_path: Path) -> None:
    node = Node.load(Flags(dir=str(tmp_path)), {})
    assert node.https == (Address("", 8443),)
    assert node.http == (Address("", 8080),)
    assert node.admin == (Address("127.0.0.1", 8081),)
    assert node.store_url == f"sqlite:///{tmp_path}/enrolld.db"
    assert (node.workers, node.names, node.demo, node.unlock_file) == (1, (), True, None)


def test_a_flag_goes_before_a_variable_before_the_file(tmp_path: Path) -> None:
    text = 'names = ["file.example"]\nworkers = 2\n[listen]\nhttp = "127.0.0.1:1"\nhttps = "127.0.0.1:2"\n'
    environ = {"ENROLLD_WORKERS": "3", "ENROLLD_HTTPS": "127.0.0.1:4, [::1]:4"}
    node = load(tmp_path, text, environ, https=["127.0.0.1:5"])
    assert node.names == ("file.example",)
    assert node.workers == 3
    assert node.http == (Address("127.0.0.1", 1),)
    assert node.https == (Address("127.0.0.1", 5),)
    assert load(tmp_path, text, environ).https == (Address("127.0.0.1", 4), Address("::1", 4))


def test_listeners_behind_a_balancer_are_listeners_of_their_own(tmp_path: Path) -> None:
    text = '[proxy]\nhttps = [":9443", "[::1]:9444"]\nfrom = ["192.0.2.10", "2001:db8::/32"]\n'
    node = load(tmp_path, text, {"ENROLLD_PROXY_HTTP": "127.0.0.1:9080"}, https=["off"], http=["off"])
    assert (node.https, node.http) == ((), ())
    assert node.proxy_https == (Address("", 9443), Address("::1", 9444))
    assert node.proxy_http == (Address("127.0.0.1", 9080),)
    assert node.proxies == ("192.0.2.10", "2001:db8::/32")


def test_limits_are_read_and_the_others_keep_their_defaults(tmp_path: Path) -> None:
    node = load(tmp_path, '[limits]\nconnections = 5\ntrusted = ["10.0.0.0/8"]\n')
    assert node.limits == Limits(connections=5, trusted=("10.0.0.0/8",))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        pytest.param("127.0.0.1:8443", Address("127.0.0.1", 8443), id="ipv4"),
        pytest.param("[::1]:8443", Address("::1", 8443), id="ipv6"),
        pytest.param("[::]:8443", Address("::", 8443), id="ipv6-all"),
        pytest.param("[0:0::1]:1", Address("::1", 1), id="ipv6-canonical"),
        pytest.param(":8443", Address("", 8443), id="all"),
        pytest.param("*:8443", Address("", 8443), id="star"),
        pytest.param("localhost:0", Address("localhost", 0), id="localhost-any-port"),
        pytest.param("0.0.0.0:65535", Address("0.0.0.0", 65535), id="highest-port"),  # noqa: S104  # never bound
    ],
)
def test_an_address_is_read(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("8443", "expected ADDR:PORT", id="port-alone"),
        pytest.param("127.0.0.1", "expected ADDR:PORT", id="no-port"),
        pytest.param("127.0.0.1:", "expected ADDR:PORT", id="empty-port"),
        pytest.param("127.0.0.1:-1", "expected ADDR:PORT", id="negative-port"),
        pytest.param("127.0.0.1:٣", "expected ADDR:PORT", id="digits-of-another-script"),
        pytest.param("127.0.0.1:65536", "at most 65535", id="port-too-large"),
        pytest.param("::1:8443", "brackets", id="ipv6-without-brackets"),
        pytest.param("[127.0.0.1]:8443", "brackets", id="ipv4-in-brackets"),
        pytest.param("pki.example.com:8443", "is not an IP address", id="name"),
    ],
)
def test_an_address_that_cannot_be_bound_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Address.parse(text)


def test_a_listener_can_be_off_but_not_all_of_them(tmp_path: Path) -> None:
    assert load(tmp_path, '[listen]\nhttp = "off"\nadmin = ["off"]\n').http == ()
    text = '[listen]\nhttp = "off"\nadmin = "off"\n'
    nothing = "every listener is off, so that there is nothing to serve"
    assert faults(tmp_path, text, https=["off"]) == [f"enrolld.toml: listen: {nothing}"]
    by_flags = faults(tmp_path, https=["off"], http=["off"], admin=["off"])
    assert by_flags == [f"--https, --http, --admin: {nothing}"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param("nmaes = []", "enrolld.toml: nmaes: no such key; the nearest is names", id="top"),
        pytest.param(
            "[listen]\nhtps = ':1'", "enrolld.toml: listen.htps: no such key; the nearest is listen.https", id="nested"
        ),
        pytest.param("[store]\nx = 1", "enrolld.toml: store.x: no such key; known are url", id="nothing-near"),
        pytest.param("workers = 'two'", "enrolld.toml: workers: expected a whole number, got a string", id="kind"),
        pytest.param("workers = 0", "enrolld.toml: workers: expected 1 to 128, got 0", id="range"),
        pytest.param("store = 3", "enrolld.toml: store: expected a table [store]", id="not-a-table"),
        pytest.param(
            "[log]\nformat = 'xml'", "enrolld.toml: log.format: expected one of auto, json, text", id="choice"
        ),
        pytest.param(
            "[listen]\nhttp = ['off', ':1']", "enrolld.toml: listen.http: 'off' stands alone", id="off-and-on"
        ),
        pytest.param(
            "[store]\nurl = 'mysql://x'",
            "enrolld.toml: store.url: expected sqlite:///PATH or postgresql://...",
            id="store",
        ),
        pytest.param("names = ['*.example']", "expected a host name such as pki.example.com", id="wildcard-name"),
        pytest.param("names = ['a_b.example']", "expected a host name such as pki.example.com", id="underscore-name"),
        pytest.param("= 3", "enrolld.toml: not TOML", id="not-toml"),
        pytest.param(
            "[limits]\nconections = 1",
            "enrolld.toml: limits.conections: no such key; the nearest is limits.connections",
            id="limit",
        ),
        pytest.param(
            "[limits]\nwaiting = 0", "enrolld.toml: limits.waiting: expected 1 to 10000000, got 0", id="limit-range"
        ),
        pytest.param(
            "[limits]\ntrusted = ['10.0.0.1/8']",
            "enrolld.toml: limits.trusted: expected a network",
            id="trusted-host-bits",
        ),
        pytest.param(
            "[proxy]\nhttps = ':9443'", "enrolld.toml: proxy.from: name the balancers", id="proxy-from-nobody"
        ),
        pytest.param(
            "[proxy]\nhttps = ':x'\nfrom = ['192.0.2.1']",
            "enrolld.toml: proxy.https: expected ADDR:PORT",
            id="proxy-port",
        ),
        pytest.param(
            "[proxy]\nfrom = ['balancer.example']", "enrolld.toml: proxy.from: expected a network", id="proxy-name"
        ),
    ],
)
def test_a_fault_of_the_file_names_its_key(tmp_path: Path, text: str, fault: str) -> None:
    (found,) = faults(tmp_path, text)
    assert fault in found


def test_all_faults_are_told_at_once_each_with_its_source(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        "workers = 1.5\n[store]\nul = 1\n",
        {"ENROLLD_HTTP": "nowhere", "ENROLLD_LOG_LEVEL": "loud"},
        names=["a b"],
        https=["x"],
    )
    assert [line.split(":")[0] for line in found] == [
        "enrolld.toml",
        "enrolld.toml",
        "ENROLLD_LOG_LEVEL",
        "--name",
        "--https",
        "ENROLLD_HTTP",
    ]


@pytest.mark.parametrize(
    ("flags", "environ", "directory", "named"),
    [
        pytest.param(Flags(dir="a"), {"ENROLLD_DIR": "b"}, "a", True, id="flag"),
        pytest.param(Flags(), {"ENROLLD_DIR": "b"}, "b", True, id="variable"),
        pytest.param(Flags(), {"ENROLLD_DIR": ""}, "enrolld-data", False, id="empty-variable"),
        pytest.param(Flags(), {}, "enrolld-data", False, id="default"),
    ],
)
def test_the_directory_and_whether_it_was_named(
    flags: Flags, environ: dict[str, str], directory: str, named: bool
) -> None:
    assert node_directory(flags, environ) == (Path(directory).absolute(), named)


@pytest.mark.parametrize(
    ("names", "port", "url"),
    [
        pytest.param((), 8080, "http://localhost:8080", id="demo"),
        pytest.param(("pki.example.com", "other"), 8080, "http://pki.example.com:8080", id="first-name"),
        pytest.param(("pki.example.com",), 80, "http://pki.example.com", id="port-80"),
        pytest.param(("pki.example.com",), None, "http://pki.example.com", id="served-elsewhere"),
        pytest.param(("2001:db8::1",), 8080, "http://[2001:db8::1]:8080", id="ipv6"),
    ],
)
def test_the_public_url_is_the_first_name_and_the_http_port(
    tmp_path: Path, names: tuple[str, ...], port: int | None, url: str
) -> None:
    assert load(tmp_path, names=names).public_url(port) == url


def test_names_are_kept_in_their_canonical_form(tmp_path: Path) -> None:
    assert load(tmp_path, names=["PKI.Example.Com.", "2001:DB8:0::1"]).names == ("pki.example.com", "2001:db8::1")


def test_without_names_the_server_certificate_covers_this_machine(tmp_path: Path) -> None:
    assert load(tmp_path).server_names()[:3] == ("localhost", "127.0.0.1", "::1")
    assert load(tmp_path, names=["a.example"]).server_names() == ("a.example",)


def test_a_path_of_the_unlock_key_is_meant_from_where_it_is_written(tmp_path: Path) -> None:
    assert load(tmp_path, "[unlock]\nfile = 'keys/other'").unlock_file == tmp_path / "keys/other"
    assert load(tmp_path, environ={"ENROLLD_UNLOCK_FILE": "here"}).unlock_file == Path("here").absolute()


def test_the_file_that_init_writes_is_read_back_as_the_defaults(tmp_path: Path) -> None:
    text = starting_file(["pki.example.com"])
    assert load(tmp_path, text).names == ("pki.example.com",)
    uncommented = "\n".join(
        line.removeprefix("# ") if " = " in line and "PATH" not in line else line for line in text.splitlines()
    )
    everything = load(tmp_path, uncommented)
    defaults = Node.load(Flags(dir=str(tmp_path / "none")), {})
    assert (everything.https, everything.http, everything.admin, everything.log, everything.workers) == (
        defaults.https,
        defaults.http,
        defaults.admin,
        defaults.log,
        defaults.workers,
    )


def test_variables_that_mean_nothing_are_found_with_the_nearest_that_does() -> None:
    environ = {"ENROLLD_WORKER": "2", "ENROLLD_SERVICE_HOST": "10.0.0.1", "ENROLLD_DIR": "x", "PATH": "y"}
    assert unknown_variables(environ) == [("ENROLLD_SERVICE_HOST", ""), ("ENROLLD_WORKER", "ENROLLD_WORKERS")]
