"""The OpenAPI document, made of the packages' `schema` modules, and a page to read the document."""
