"""An initialization for other libraries."""
