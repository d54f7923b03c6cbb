"""The recipes that ship: each file defines PRETRAINED and FROM_SCRATCH, and says what accuracy it reaches."""
