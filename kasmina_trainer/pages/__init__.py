"""Pages that stand alone: one HTML file each, charts as inline SVG, no script, no network, light and dark."""
