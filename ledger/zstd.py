"""Zstandard, from the standard library where it has it (Python 3.14), else its back-port."""

import sys

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError, compress
else:
    from backports.zstd import ZstdDecompressor, ZstdError, compress

__all__ = ["ZstdDecompressor", "ZstdError", "compress", "decompress_bounded"]


def decompress_bounded(data: bytes, limit: int) -> bytes | None:
    """Decompress one whole frame, or return None if it holds more than ``limit`` bytes.

    Raises:
        ZstdError: not one complete zstd frame.
    """
    decompressor = ZstdDecompressor()
    out = decompressor.decompress(data, max_length=limit + 1)
    if len(out) > limit:
        return None
    if not decompressor.eof or decompressor.unused_data:
        raise ZstdError("not one complete frame")
    return out
