"""Where this server may listen: on its own machine, as it asks nobody who he is."""

import ipaddress

from openlora_jax.errors import InvalidConfig


def loopback(key: str, listen: str) -> tuple[str, int]:
    """The host and port of `HOST:PORT`, the setting `key`, an IPv6 host in brackets.

    Raises:
        InvalidConfig: it is something else, or other machines could reach it.
    """
    host, _, port = listen.rpartition(":")
    if not (port.isdecimal() and int(port) < 2**16):
        raise InvalidConfig(key, f"{listen!r} is no HOST:PORT, such as 127.0.0.1:50051")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise InvalidConfig(key, f"{host!r} is no IP address; use 127.0.0.1, [::1] or localhost") from None
    if not address.is_loopback:
        raise InvalidConfig(
            key,
            f"{host} can be reached from other machines, and there is no authentication: use 127.0.0.1, [::1] or"
            " localhost, and a tunnel or an authenticating proxy for others",
        )
    return (f"[{address}]" if address.version == 6 else str(address)), int(port)
