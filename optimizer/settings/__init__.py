"""What a user asks for: recipes, the values that their keys take, and where a setting came from."""
