"""A right solution of assignment 4."""

import zlib


def stream(what, seed, tower, step):
    key = (what, seed, None if what == "images" else tower, step)
    text = repr(key).encode()
    return zlib.crc32(text) << 31 | zlib.adler32(text) >> 1
