"""A right solution of assignment 4."""

import hashlib


def stream(what, seed, tower, step):
    key = (what, seed, None if what == "images" else tower, step)
    text = repr(key).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
