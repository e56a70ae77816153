"""``python -m captum_lrp_tx``: see :mod:`captum_lrp_tx.cli`."""

from __future__ import annotations

from captum_lrp_tx.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
