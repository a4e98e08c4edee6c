"""Every named run as plain data. ``cifarnet train --recipe NAME`` trains it."""

from cifarnet.recipes.builders import build_optimizer, build_trainer, fit_to_images
from cifarnet.recipes.named import RECIPES, get_recipe, measured_results
from cifarnet.recipes.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "build_optimizer", "build_trainer", "fit_to_images", "get_recipe", "measured_results"]
