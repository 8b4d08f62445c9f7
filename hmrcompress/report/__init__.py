"""Plots and sheets."""
