"""Expressions over the columns of scores, as options hold them."""
