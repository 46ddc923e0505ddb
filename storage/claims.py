"""Whose a name is, of writers that never meet: the last one's that took it. The others find out when they look."""

import json
import secrets
from dataclasses import dataclass

from vococache.storage.format import JsonRecord
from vococache.storage.store import Store

FOLDER = "claims"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim(JsonRecord):
    """That `holder`, as people know it, writes what belongs to a name. `token`: of this one claim."""

    token: str
    holder: str


def take(store: Store, name: str, holder: str) -> Claim:
    """Make a name ours, whoever's it was."""
    claim = Claim(token=secrets.token_hex(8), holder=holder)
    store.objects.put(f"{FOLDER}/{name}", json.dumps(claim.to_dict()).encode())
    return claim


def taken_by(store: Store, name: str, claim: Claim) -> str | None:
    """Who took a name after us; None while it is ours."""
    data = store.objects.get(f"{FOLDER}/{name}")
    if data is None:
        return None
    try:
        found = Claim.from_dict(json.loads(data))
    except (ValueError, TypeError, AttributeError):
        return "somebody"
    return None if found.token == claim.token else str(found.holder)


def is_claim(key: str) -> bool:
    """Is an object of a store one of these?"""
    return key.startswith(f"{FOLDER}/")
