"""What the package withstands: the rows of the security table, and the tests that prove them."""
