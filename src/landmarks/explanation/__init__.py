"""Where a network looked: heat maps of its answers, drawn over the photographs, and how far they can be believed."""
