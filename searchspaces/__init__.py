"""Search spaces and grids as data, one module a method, each with its source and its count."""
