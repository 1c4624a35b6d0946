"""Zstandard, from the standard library where it has it (Python 3.14), else its back-port."""

import sys

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdDecompressor, ZstdError, compress
else:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError, compress

__all__ = ["ZstdDecompressor", "ZstdError", "compress", "decompress_bounded"]

_MAX_WINDOW_LOG = 23
"""8 MiB, what RFC 8878 asks every decoder for: a frame cannot claim more memory than that."""


def decompress_bounded(data: bytes, limit: int) -> bytes | None:
    """Decompress one whole frame, or return None if it holds more than ``limit`` bytes.

    Raises:
        ZstdError: not one complete zstd frame.
    """
    decompressor = ZstdDecompressor(options={DecompressionParameter.window_log_max: _MAX_WINDOW_LOG})
    out = decompressor.decompress(data, max_length=limit + 1)
    if len(out) > limit:
        return None
    if not decompressor.eof or decompressor.unused_data:
        raise ZstdError("not one complete frame")
    return out
