"""The software rasteriser and its shading."""
