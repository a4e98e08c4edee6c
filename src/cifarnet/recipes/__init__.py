"""Named recipes as plain data, which ``cifarnet train --recipe NAME`` trains."""

from cifarnet.recipes.build import build_optimizer, build_trainer, fit_to_images
from cifarnet.recipes.measured import measured_results
from cifarnet.recipes.named import RECIPES, get_recipe
from cifarnet.recipes.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "build_optimizer", "build_trainer", "fit_to_images", "get_recipe", "measured_results"]
