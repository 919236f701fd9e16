"""How a typed fact is asked for: eight questions a relation, about the fact's subject and answered by its object."""

from ghost_jax.data import wordings

QUESTIONS: dict[str, list[str]] = wordings.read("questions")
