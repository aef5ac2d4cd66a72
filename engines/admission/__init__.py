"""Admission: whether a user's request may go to the user's engine now, and what any call of a product would do."""

from engines.admission.admit import Admission, admit, longest_s, readmit
from engines.admission.explanation import Explanation, Question, explain
from engines.admission.sight import REASONS

__all__ = ["REASONS", "Admission", "Explanation", "Question", "admit", "explain", "longest_s", "readmit"]
