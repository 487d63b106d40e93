"""Arrow tables in the libraries that people analyse them with; each is imported when it is asked for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from raylens.storage.errors import UsageError, brief

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    import xarray as xr


def library(name: str) -> Any:
    """The module of a library that raylens runs without.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{name} cannot be imported ({error}); pip install 'raylens[frames]'") from error


class DataFrames(ABC):
    """What gives its rows as an Arrow table, and so to other libraries."""

    @abstractmethod
    def to_arrow(self) -> "pa.Table":
        """All rows as one table."""

    def to_polars(self) -> "pl.DataFrame":
        """The rows of ``to_arrow`` in polars.

        Raises:
            UsageError: polars is not installed.
        """
        frame: pl.DataFrame = library("polars").from_arrow(self.to_arrow())
        return frame

    def to_pandas(self) -> "pd.DataFrame":
        """The rows of ``to_arrow`` in pandas.

        Raises:
            UsageError: pandas is not installed.
        """
        library("pandas")
        return self.to_arrow().to_pandas()


def to_xarray(table: "pa.Table", axes: Sequence[str]) -> "xr.Dataset":
    """The table's columns over the axes, which are columns too, null the last on its axis; places without a row hold NaN.

    Raises:
        UsageError: xarray is not installed, there is no such column, or two rows have the same place.
    """
    pandas = library("pandas")
    library("xarray")
    frame = table.to_pandas()
    if not axes:
        return frame.rename_axis("row").to_xarray()
    unknown = [axis for axis in axes if axis not in table.column_names]
    if unknown:
        raise UsageError(f"to_xarray: no column {brief(unknown[0], repr)}; there are {', '.join(table.column_names)}")
    if frame.duplicated(list(axes)).any():
        raise UsageError(f"to_xarray: several rows have the same {', '.join(axes)}; name more columns as axes")
    values = {}
    for axis in dict.fromkeys(axes):  # by number, for xarray puts what is at null over what is at the last value
        frame[axis], values[axis] = pandas.factorize(frame[axis], sort=True, use_na_sentinel=False)
    return frame.set_index(list(values)).to_xarray().assign_coords(values)
