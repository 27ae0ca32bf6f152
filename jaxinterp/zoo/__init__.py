"""The models that the project trained and ships, each with a card."""

from jaxinterp.zoo._catalog import card, load, names, path, steps

__all__ = ["card", "load", "names", "path", "steps"]
