"""How plots look: one style, and colours that mean the same in all of them."""

from __future__ import annotations

from typing import Any

STYLE: Any = {
    "axes.edgecolor": "0.4",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "font.size": 9,
    "grid.color": "0.9",
    "legend.frameon": False,
    "lines.markersize": 4,
    "savefig.dpi": 150,
}
PANEL_WIDTH, PANEL_HEIGHT = 3.6, 2.8  # inches
MARGIN = 0.6
AUTO, OFF = "tab:red", "0.45"
