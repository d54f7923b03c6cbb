"""From a dataset and a recipe to a run: images, cached features, head training and fine-tuning."""
