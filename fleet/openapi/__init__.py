"""The OpenAPI document, made of the floors' `schema` modules, and the page to read it."""
