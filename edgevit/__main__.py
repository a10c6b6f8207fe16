"""`python -m edgevit`, for launchers that start modules."""

from __future__ import annotations

from edgevit.cli import main

main()
