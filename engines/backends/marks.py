"""The form of an incarnation's mark. The launcher of subprocess engines starts often, and imports only this of the contract."""

import re

MARK = re.compile(r"([0-9]+)(?:-([0-9a-f]+))?")
"""The number of an incarnation, and after a hyphen its random token, if it has one."""
