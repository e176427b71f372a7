"""A small detector: network, training, and mean average precision; its boxes are decoded as a device decodes them."""
