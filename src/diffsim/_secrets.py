"""Secrets of the environment stay there: a text that holds one names the variable instead."""

from __future__ import annotations

import os
import re
from functools import lru_cache

SHORTEST = 6  # characters; what is shorter may stand in any word
_NAMES = re.compile(
    r"token(?!iz)|passw(or)?d|passphrase|secret|credential|apikey|(^|_)keys?(_|$)|pass$|"
    r"(^|_)(auth|pat|dsn)$|(?<=.)(?<!^OLD)pwd$",  # PWD and OLDPWD are folders
    re.IGNORECASE,
)
_LOGIN = re.compile(r"://[^/?#\s:@]*:([^/?#\s]*)@")


def scrub(text: str) -> str:
    """`text` with the value of each secret variable of the environment as `${oc.env:NAME}`, which
    names it and is what a configuration says to have it back.

    A variable is secret by its name (token, password, secret, credential, key, pwd, auth and their
    like, as words of it), or as a URL that says a password (`scheme://user:password@host`); that
    password by itself is masked as `***`.
    """
    for name, value in os.environ.items():
        if len(value) < SHORTEST:
            continue
        password = _password(value)
        if (password or _is_secret(name)) and value in text:
            text = text.replace(value, f"${{oc.env:{name}}}")
        if len(password) >= SHORTEST:
            text = text.replace(password, "***")
    return text


@lru_cache(maxsize=4096)
def _password(value: str) -> str:
    """What a URL in `value` says behind the colon of its login."""
    found = _LOGIN.search(value)
    return found[1] if found else ""


@lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    return bool(_NAMES.search(name))
