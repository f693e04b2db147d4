"""Published experiments again: find the recipes, say what they promise and cost, run them, compare the figures."""
