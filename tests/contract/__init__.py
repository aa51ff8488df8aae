"""The feature contract: its rows, one test named after each, and the page that shows both."""
