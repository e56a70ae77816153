"""Do fast attributions of heads and MLPs follow their measured effects? See ``README.md``."""
