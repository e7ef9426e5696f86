"""Addresses of Ray clusters, refused before anything slow is imported."""

from __future__ import annotations

import importlib.util
import re

from ..errors import UsageError, lacking, option

LOCAL, FOUND = "local", "auto"
"""A cluster that is begun on this machine and ends with the work, and the one that runs on it."""
CLIENT = "ray://"
"""Begins the address of a cluster's client server, for who is not one of its machines."""
_AT = re.compile(rf"({CLIENT})?(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):\d{{1,5}}")


def check_ray(address: str) -> None:
    """Refuse what cannot be a cluster.

    Raises:
        UsageError: Ray is not installed, or this is no address.
    """
    if address not in (LOCAL, FOUND) and not _AT.fullmatch(address):
        known = f"{FOUND}, {LOCAL}, HOST:PORT of a cluster, or {CLIENT}HOST:PORT"
        raise UsageError(f'{option("ray")} "{address}": write {known}')
    if importlib.util.find_spec("ray") is None:
        raise UsageError(lacking(option("ray"), "ray", "ray"))
