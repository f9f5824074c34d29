"""Who the site is at Globus."""

from __future__ import annotations

from typing import Literal

import globus_sdk

from filmloop.config.globus import GlobusSection

Role = Literal["data", "weights"]


def open_app(section: GlobusSection, role: Role = "data") -> globus_sdk.GlobusApp:
    """The SDK's app of the site's identity. It never prompts: what only a person can do is an `AuthError`."""
    raise NotImplementedError
