"""The database's own functions, as DDL: of the schema, and so never imported on the request path.

`text` makes words of a text, `nearest` finds the nearest messages of a tenant, and `matching` those
that match words best.
"""
