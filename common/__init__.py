"""The lowest layer: general Django code without models, and the settings. Imports nothing else of Roundhouse."""
