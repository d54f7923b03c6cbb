"""Where a network looked: heat maps of its answers, drawn over the images, and how far they can be believed."""
