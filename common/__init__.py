"""The ground floor: what would make sense in another Django project. No model, and no word of this domain."""
