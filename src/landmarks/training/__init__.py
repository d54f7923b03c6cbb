"""From a dataset and a recipe to a run: photographs, cached features, warm-up and fine-tuning."""
