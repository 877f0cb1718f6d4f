"""Arrays and tables as plain data: numpy, pandas and scipy's sparse matrices cross between guest and judge by content.

What is decoded is made anew from numbers, texts and the names of types. Subclasses and attributes do not cross. Imports
the libraries where a value needs them.
"""

from __future__ import annotations

import base64
from typing import Any

from megatron.evaluation.isolation import wire

SPARSE_FORMATS = ("csr", "csc", "coo", "lil", "dok", "bsr", "dia")


def encode(value: Any) -> Any:
    """Give a value as data. Raises WireError for a type that cannot cross."""
    return wire.encode(value, _encode)


def decode(data: Any) -> Any:
    """Give the value of data. Raises WireError for what no value is written as."""
    return wire.decode(data, _decode)


def _encode(value: Any) -> Any:
    home = type(value).__module__.partition(".")[0]
    if home == "numpy":
        return _encode_numpy(value)
    if home == "pandas":
        return _encode_pandas(value)
    if home == "scipy":
        return _encode_sparse(value)
    if home == "torch":
        return _encode_tensor(value)
    return None


def _encode_numpy(value: Any) -> Any:
    import numpy as np

    if isinstance(value, np.generic):
        return {"g": _encode_array(np.asarray(value))}
    if type(value) is np.ndarray:
        return {"n": _encode_array(value)}
    raise wire.WireError(f"a value of type {type(value).__name__} is no plain data")


def _encode_array(array: Any) -> Any:
    if array.dtype.hasobject:
        return [list(array.shape), None, [encode(item) for item in array.ravel().tolist()]]
    if array.dtype.names is not None:
        raise wire.WireError("an array of records is no plain data")
    return [list(array.shape), array.dtype.str, base64.b64encode(array.tobytes()).decode()]


def _encode_pandas(value: Any) -> Any:
    import pandas as pd

    if value is pd.NaT or value is pd.NA:
        return {"N": "NaT" if value is pd.NaT else "NA"}
    if isinstance(value, (pd.Timestamp, pd.Timedelta)):
        zone = getattr(value, "tz", None)
        return {"T": [type(value).__name__, value.isoformat(), None if zone is None else str(zone)]}
    if isinstance(value, pd.RangeIndex):
        return {"R": [value.start, value.stop, value.step, encode(value.name)]}
    if isinstance(value, pd.MultiIndex):
        levels = [encode(value.get_level_values(place)) for place in range(value.nlevels)]
        return {"M": [levels, encode(list(value.names))]}
    if isinstance(value, (pd.Index, pd.Series)):
        kind = "I" if isinstance(value, pd.Index) else "S"
        index = None if kind == "I" else encode(value.index)
        return {kind: [_encode_column(value), index, encode(value.name)]}
    if isinstance(value, pd.DataFrame):
        columns = [_encode_column(value.iloc[:, place]) for place in range(value.shape[1])]
        return {"F": [encode(value.index), encode(value.columns), columns]}
    raise wire.WireError(f"a value of type {type(value).__name__} is no plain data")


def _encode_column(column: Any) -> Any:
    """Give [name of a type, array]."""
    import numpy as np
    import pandas as pd

    if isinstance(column.dtype, np.dtype):
        return [None, _encode_array(column.to_numpy())]
    if isinstance(column.dtype, pd.CategoricalDtype):
        values = column.array
        categories = encode(pd.Index(values.categories))
        codes = _encode_array(np.asarray(values.codes))
        return ["category", [categories, codes, bool(values.ordered)]]
    return [str(column.dtype), _encode_array(column.to_numpy(dtype=object))]


def _encode_sparse(value: Any) -> Any:
    import numpy as np

    if getattr(value, "format", None) not in SPARSE_FORMATS:
        raise wire.WireError(f"a value of type {type(value).__name__} is no plain data")
    entries = value.tocoo()
    is_array = type(value).__name__.endswith("_array")
    parts = [_encode_array(np.asarray(part)) for part in (entries.data, entries.row, entries.col)]
    return {"P": [value.format, is_array, list(entries.shape), *parts]}


def _encode_tensor(value: Any) -> Any:
    import torch

    if type(value) is not torch.Tensor or value.dtype == torch.bfloat16:
        raise wire.WireError(f"a value of type {type(value).__name__} is no plain data")
    return {"X": _encode_array(value.detach().cpu().resolve_conj().numpy())}


def _decode(tag: str, body: Any) -> Any:
    try:
        match tag:
            case "n":
                return _decode_array(body)
            case "g":
                return _decode_array(body)[()]
            case "N" | "T" | "R" | "M" | "I" | "S" | "F":
                return _decode_pandas(tag, body)
            case "P":
                return _decode_sparse(*body)
            case "X":
                import torch

                return torch.from_numpy(_decode_array(body).copy())
    except wire.WireError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise wire.WireError(f"damaged value: {error}") from None
    raise wire.WireError(f"a value has no tag {tag!r}")


def _decode_array(body: Any) -> Any:
    import numpy as np

    shape, kind, content = body
    shape = tuple(int(size) for size in shape)
    if min(shape, default=0) < 0 or len(shape) > 32:
        raise wire.WireError(f"an array of shape {shape}")
    if kind is None:
        array = np.empty(len(content), dtype=object)
        for place, item in enumerate(content):
            array[place] = decode(item)
        return array.reshape(shape)
    dtype = np.dtype(str(kind))
    if dtype.hasobject or dtype.names is not None:
        raise wire.WireError(f"an array of {kind}")
    return np.frombuffer(base64.b64decode(content), dtype).reshape(shape).copy()


def _decode_pandas(tag: str, body: Any) -> Any:
    import pandas as pd

    match tag:
        case "N":
            return pd.NaT if body == "NaT" else pd.NA
        case "T":
            kind, text, zone = body
            if kind == "Timedelta":
                return pd.Timedelta(text)
            moment = pd.Timestamp(text)
            return moment if zone is None else moment.tz_convert(zone)
        case "R":
            start, stop, step, name = body
            return pd.RangeIndex(int(start), int(stop), int(step), name=decode(name))
        case "M":
            levels, names = body
            return pd.MultiIndex.from_arrays([decode(level) for level in levels], names=decode(names))  # fmt: skip
        case "I":
            return pd.Index(_decode_column(body[0]), name=decode(body[2]))
        case "S":
            return pd.Series(_decode_column(body[0]), index=decode(body[1]), name=decode(body[2]))
    index, names, columns = body
    index = decode(index)
    table = pd.DataFrame({place: pd.Series(_decode_column(one), index=index) for place, one in enumerate(columns)}, index=index)  # fmt: skip
    table.columns = decode(names)
    return table


def _decode_column(body: Any) -> Any:
    import pandas as pd

    kind, content = body
    if kind is None:
        array = _decode_array(content)
        return pd.Series(array, dtype=array.dtype).array if array.dtype == object else array
    if kind == "category":
        categories, codes, is_ordered = content
        return pd.Categorical.from_codes(
            _decode_array(codes), categories=decode(categories), ordered=bool(is_ordered)
        )
    return pd.array(_decode_array(content), dtype=str(kind))


def _decode_sparse(kind: str, is_array: bool, shape: Any, *parts: Any) -> Any:
    from scipy import sparse

    if kind not in SPARSE_FORMATS:
        raise wire.WireError(f"a sparse matrix of format {kind!r}")
    data, row, column = map(_decode_array, parts)
    make = sparse.coo_array if is_array else sparse.coo_matrix
    return make((data, (row, column)), shape=tuple(map(int, shape))).asformat(kind)
