"""What the packages offer by name, and what it takes to import them."""
