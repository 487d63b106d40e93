"""``raylens view``: a local, read-only site over a store (docs/PAGES.md).

Every page at an address has its JSON at ``/api`` and the same address. A module of pages has functions that take the shelf and
the request and give what the page shows; app.py lists them.
"""
