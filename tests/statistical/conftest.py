"""Calls are checked against their annotations, shapes and dtypes included, as tests/conftest.py does."""

import jaxtyping

jaxtyping.install_import_hook("research.statistical", "beartype.beartype")
