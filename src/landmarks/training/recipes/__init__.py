"""The recipes that ship: each file holds PRETRAINED and FROM_SCRATCH, and says what it reaches."""
