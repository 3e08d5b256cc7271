import pytest

from openlora_jax.errors import InvalidConfig
from serving.loopback import loopback


@pytest.mark.parametrize(
    ("listen", "bound"),
    [
        ("127.0.0.1:50051", ("127.0.0.1", 50051)),
        ("127.3.2.1:0", ("127.3.2.1", 0)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("[::1]:65535", ("[::1]", 65535)),
    ],
)
def test_loopback_addresses(listen: str, bound: tuple[str, int]) -> None:
    assert loopback("listen", listen) == bound


@pytest.mark.parametrize(
    ("listen", "problem"),
    [
        ("0.0.0.0:50051", "reached from other machines"),
        ("[::]:50051", "reached from other machines"),
        ("192.168.1.2:50051", "reached from other machines"),
        ("example.com:50051", "no IP address"),
        (":50051", "no IP address"),
        ("127.0.0.1", "no HOST:PORT"),
        ("127.0.0.1:http", "no HOST:PORT"),
        ("127.0.0.1:65536", "no HOST:PORT"),
        ("127.0.0.1:-1", "no HOST:PORT"),
        ("", "no HOST:PORT"),
    ],
)
def test_other_addresses_are_refused(listen: str, problem: str) -> None:
    with pytest.raises(InvalidConfig, match=f"metrics: .*{problem}"):
        loopback("metrics", listen)
