"""A record as one self-contained HTML page: it loads nothing, and text of a corpus is only ever text in it.

What Python prepares (lens_data.py) is drawn in the browser by the scripts of assets/, which are plain modules put one after the
other: there is nothing to build.
"""
