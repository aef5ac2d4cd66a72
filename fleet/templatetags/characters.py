"""The filter `marked` of the templates: a text with a mark in place of each character that does not show."""

from django.template import Library

from common.characters import marked

register = Library()
register.filter("marked", marked)
