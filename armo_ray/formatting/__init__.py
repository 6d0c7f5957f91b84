"""Numbers, tables and figures as people read them."""
