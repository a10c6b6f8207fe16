"""Models: their dims as data (`arch`), slim modules (`layers`), one family a file, and loading."""
