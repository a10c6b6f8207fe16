"""Estimate beside measurement: the report as data, as a terminal table and as one HTML file."""
