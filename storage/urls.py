"""Addresses of servers, as they may be shown."""


def redact(url: str) -> str:
    """The URL without its secrets, for messages and logs; of one that is badly written, only what is surely no secret."""
    scheme, mark, rest = url.partition("://")
    place, _, query = rest.partition("?")
    if not mark:
        return "***" if "@" in url else url
    if "@" in query:  # a password may hold any sign, also those that end it
        return f"{scheme}://***"
    secret, at, host = place.rpartition("@")
    return f"{scheme}://{'***' if secret else ''}{at}{host.partition('#')[0]}"
