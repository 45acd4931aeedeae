"""edgecls: a trained image classifier becomes a verified bundle for the board that has to run it."""

__version__ = "0.1.0"
