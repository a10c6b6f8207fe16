"""Build kits: what a board without edgevit needs to build, check and time its own engines."""
