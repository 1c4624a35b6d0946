"""Owns reading and making the tensors of ``tritonclient``, over HTTP and gRPC alike."""

from __future__ import annotations

from typing import Any

__all__ = ["flat", "rows_in", "text_of", "texts_in", "true_like"]


def _array(tensor: Any) -> Any:
    """The values of an ``InferInput``; None if they are not in it (shared memory)."""
    if tensor is None:
        return None
    import numpy as np
    from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

    over_http = hasattr(tensor, "_get_binary_data")
    raw = tensor._get_binary_data() if over_http else tensor._get_content()
    kind = tensor.datatype()
    if raw is None:
        values = tensor._get_tensor().get("data") if over_http else None
        return None if values is None else np.array(values, dtype=object if kind == "BYTES" else None)
    if kind == "BYTES":
        return deserialize_bytes_tensor(raw).reshape(tensor.shape())
    return np.frombuffer(raw, triton_to_np_dtype(kind)).reshape(tensor.shape())


def texts_in(tensor: Any) -> list[str] | None:
    """Its texts, in order; None if it is not there, or shows none."""
    values = _array(tensor)
    return None if values is None else [text_of(each) for each in values.reshape(-1).tolist()]


def rows_in(tensor: Any) -> list[list[int]] | None:
    """Its rows of token ids; None if it is not there, or shows none."""
    values = _array(tensor)
    return (
        None if values is None else [[int(each) for each in row] for row in values.reshape(len(values), -1)]
    )


def flat(values: Any) -> list[Any] | None:
    """The values of an output, in order; None if the model gave none."""
    return None if values is None else values.reshape(-1).tolist()


def text_of(value: object) -> str:
    """One text of an output."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def true_like(like: Any, name: str, count: int) -> Any:
    """An input of the same kind of client that says yes; a model that batches wants one for each row."""
    import numpy as np

    shape = [count, 1] if len(like.shape()) > 1 else [1]
    asked = type(like)(name, shape, "BOOL")
    asked.set_data_from_numpy(np.ones(shape, dtype=bool))
    return asked
