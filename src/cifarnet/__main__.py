"""Entry point of ``python -m cifarnet``."""

from __future__ import annotations

from cifarnet.cli import main

raise SystemExit(main())
