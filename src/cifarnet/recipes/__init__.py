"""Every named run as plain data. ``cifarnet train --recipe NAME`` trains it."""

from cifarnet.recipes.builders import build_trainer
from cifarnet.recipes.named import RECIPES, get_recipe
from cifarnet.recipes.recipe import Recipe

__all__ = [
    "RECIPES",
    "Recipe",
    "build_trainer",
    "get_recipe",
]
