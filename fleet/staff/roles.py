"""The roles of staff: groups that every `migrate` brings to what this table says. A new permission is one more line."""

VIEWER, OPERATOR, AUDITOR, ADMIN = "viewer", "operator", "auditor", "admin"
NAMES = (VIEWER, OPERATOR, AUDITOR, ADMIN)
