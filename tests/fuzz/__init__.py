"""Programs that look for what breaks the package, with random bytes; ``README.md`` tells how they are run."""
