"""The key by which the emulated Auth signs who somebody is; made when it is first needed."""

from __future__ import annotations

import functools
import json
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from jwt.algorithms import RSAAlgorithm


class Key:
    """An RSA key."""

    @functools.cached_property
    def _private(self) -> RSAPrivateKey:
        return generate_private_key(public_exponent=65537, key_size=2048)

    def public(self) -> dict[str, Any]:
        """The public half, as a JSON Web Key."""
        found: dict[str, Any] = json.loads(RSAAlgorithm.to_jwk(self._private.public_key()))
        return found | {"alg": "RS512", "use": "sig"}

    def sign(self, claims: dict[str, Any]) -> str:
        """A JSON Web Token."""
        return jwt.encode(claims, self._private, algorithm="RS512")
