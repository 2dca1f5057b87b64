"""What several test files share; no test imports another."""

import helpers.typecheck  # noqa: F401 (jaxtyping, which checks with it, imports this package alone)
